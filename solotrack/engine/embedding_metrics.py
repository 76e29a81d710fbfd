"""Does the embedding know an instance again? Measured on true objects, so that detector and tracker have no part in it (METHOD 15)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from ..config import tracker_similarity
from ..data.annotation_file import DatasetError, read_annotation_file
from ..data.catalog import dataset_metadata, load_dataset
from ..data.frames import read_frame_image
from ..data.intensity import Stretch
from ..data.scatter import scatter_instances
from ..evaluation.association import AssociationResult, IdentifiedFrame, association_metrics
from ..evaluation.ytvis_format import Track, YTVISFormatError, read_ground_truth
from ..modeling.embedding import instance_centers
from ..ops.masks import centers_of_mass, masks_to_boxes
from ..ops.rle import decode_rle

__all__ = ["identified_frames", "shift_test", "video_association"]


@torch.no_grad()
def identified_frames(cfg: CfgNode, model: nn.Module, frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[IdentifiedFrame]:
    """Embeddings of true instances: the mean over the grid cells that training would give each (METHOD 1.3, 2.3).

    Args:
        cfg: INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST and STRETCH are used.
        model: a SOLOTrack with an embedding head, in evaluation mode.
        frames: (image (H, W, 3) uint8 in INPUT.FORMAT, masks (n, H, W) bool, identities (n,)) each.

    Returns:
        One a frame; instances without a cell (too small, overwritten) are left out.
    """
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    stretch = Stretch.from_config(cfg)
    inputs, truths, centers = [], [], []
    for image, masks, _ in frames:
        transform = resize.get_transform(image) if cfg.INPUT.MIN_SIZE_TEST > 0 else T.NoOpTransform()
        resized = transform.apply_image(image if stretch is None else stretch(image))
        small = [transform.apply_segmentation(mask.astype(np.uint8)) for mask in masks]
        small = torch.from_numpy(np.stack(small).astype(bool) if small else np.zeros((0, *resized.shape[:2]), dtype=bool))
        truth = Instances(resized.shape[:2], gt_masks=BitMasks(small), gt_boxes=Boxes(masks_to_boxes(small)))
        truth.gt_classes = torch.zeros(len(small), dtype=torch.int64)
        truths.append(truth.to(model.device))
        inputs.append({"image": torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))})
        centers.append(centers_of_mass(torch.from_numpy(masks)))

    images = model.preprocess(inputs)
    targets = model.assign(truths, tuple(images.tensor.shape[-2:]))
    found = instance_centers(
        model.embedding_head(model.features(images).for_embedding),
        targets.instance_index,
        [len(x) for x in truths],
        normalize=cfg.MODEL.SOLO_TRACK.EMB.SIM == "cosine",
    )
    result = []
    for number, (_, _, identities) in enumerate(frames):
        rows = (found.image_ids == number).nonzero().squeeze(1)
        index = found.gt_index[rows].cpu()
        result.append(IdentifiedFrame(found.centers[rows].cpu(), torch.as_tensor(identities)[index], centers[number][index]))
    return result


def _measure(cfg: CfgNode, model: nn.Module, videos) -> AssociationResult:
    metric, scale = tracker_similarity(cfg)
    null_logit = float(model.embedding_head.null_logit.nan_to_num(0.0))
    return association_metrics(videos, metric="cosine", new_metric=metric, new_scale=scale, null_logit=null_logit)


def shift_test(cfg: CfgNode, model: nn.Module, dataset_name: str, images: int = 200, seed: int = 0) -> AssociationResult:
    """Match the instances of labelled images with themselves after each was moved to a random other place.

    An embedding that follows appearance matches them; one that follows location does no better than ``distance``, the nearest centre.

    Args:
        cfg, model: as for :func:`identified_frames`.
        dataset_name: registered COCO images.
        images: how many, those with two instances or more.
        seed: of the choice and the places.

    Raises:
        DatasetError: no image has two instances, the set holds videos, or its labels are faulty.
    """
    if dataset_metadata(dataset_name).evaluator_type == "ytvis":
        raise DatasetError(f"The shift test needs labelled images; {dataset_name} is a set of videos.")
    model.eval()
    records = [r for r in load_dataset(dataset_name) if sum(not a.get("iscrowd", 0) for a in r["annotations"]) > 1]
    if not records:
        raise DatasetError(f"The shift test needs images with two instances or more; {dataset_name} has none.")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(records))[:images]

    def pairs() -> Iterator[list[IdentifiedFrame]]:
        for index in chosen:
            record = records[index]
            image = _read_image(record["file_name"], record["height"], record["width"], cfg.INPUT.FORMAT)
            segmentations = [a["segmentation"] for a in record["annotations"] if not a.get("iscrowd", 0)]
            try:
                masks = np.stack([decode_rle(s, *image.shape[:2]) for s in segmentations]).astype(bool)
            except ValueError as error:
                raise DatasetError(f"{record['file_name']} has a mask that cannot be used: {error}.") from None
            moved, moved_masks = scatter_instances(image, masks, rng)
            identities = np.arange(len(masks))
            yield identified_frames(cfg, model, [(image, masks, identities), (moved, moved_masks, identities)])

    return _measure(cfg, model, pairs())


def video_association(cfg: CfgNode, model: nn.Module, dataset_name: str) -> AssociationResult:
    """Match true instances between consecutive frames of labelled videos.

    Args:
        cfg, model: as for :func:`identified_frames`.
        dataset_name: registered YouTube-VIS videos with annotations.

    Raises:
        DatasetError: the videos have no annotations, faulty ones, or the set holds images.
    """
    model.eval()
    json_file = dataset_metadata(dataset_name).json_file
    try:
        truth = read_ground_truth(read_annotation_file(json_file, required=("videos", "annotations")), json_file)
    except YTVISFormatError as error:
        raise DatasetError(str(error)) from None
    tracks = defaultdict(list)
    for track in truth.tracks:
        if len(track.rles) != truth.videos[track.video_id].length:
            raise DatasetError(
                f"{json_file}: {track.name} has {len(track.rles)} segmentations but its video {truth.videos[track.video_id].length} frames."
            )
        if not track.crowd:
            tracks[track.video_id].append(track)

    def videos() -> Iterator[Iterator[IdentifiedFrame]]:
        for video in load_dataset(dataset_name):
            yield _video_frames(cfg, model, video, tracks[video["video_id"]])

    return _measure(cfg, model, videos())


def _read_image(path: str, height: int, width: int, image_format: str) -> np.ndarray:
    """The image, of the size that its masks have."""
    image = read_frame_image(path, image_format)
    if image.shape[:2] != (height, width):
        raise DatasetError(
            f"{path} has {image.shape[1]} x {image.shape[0]} pixels (width x height) but the data set's json says {width} x {height}; "
            "put the right file there, or correct the json."
        )
    return image


def _video_frames(cfg: CfgNode, model: nn.Module, video: dict, tracks: list[Track]) -> Iterator[IdentifiedFrame]:
    height, width = video["height"], video["width"]

    def frames() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for number, path in enumerate(video["file_names"]):
            present = [track for track in tracks if track.rles[number] is not None]
            masks = [decode_rle(track.rles[number], height, width) for track in present]
            masks = np.stack(masks).astype(bool) if masks else np.zeros((0, height, width), dtype=bool)
            image = _read_image(path, height, width, cfg.INPUT.FORMAT)
            yield image, masks, np.array([track.id for track in present], dtype=np.int64)

    remaining = frames()
    while batch := list(islice(remaining, cfg.TEST.FRAMES_PER_BATCH)):
        yield from identified_frames(cfg, model, batch)
