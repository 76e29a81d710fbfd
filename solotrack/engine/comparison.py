"""Several trackers on the very same detections of the same videos."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from torch import nn
from tqdm import tqdm

from ..config import check_config
from ..data.annotation_file import DatasetError, read_annotation_file
from ..data.catalog import dataset_metadata, load_dataset
from ..evaluation.ytvis_evaluator import YTVISEvaluator
from ..evaluation.ytvis_format import read_ground_truth
from ..tracking.base import build_tracker
from .streaming import VideoTracker, scored_categories, tracked_categories

__all__ = ["TRACKERS", "compare_trackers", "results_folder"]

# Row of the table -> config overrides that make its tracker.
TRACKERS: dict[str, tuple[str, ...]] = {
    "distance": ("TRACKER_HEADS.TRACKER_NAME", "DistanceTracker"),
    "distance, no gate": ("TRACKER_HEADS.TRACKER_NAME", "DistanceTracker", "TRACKER_HEADS.DISTANCE.MAX", "1e6"),
    "IoU": ("TRACKER_HEADS.TRACKER_NAME", "IoUTracker"),
    "IoUTracker+": ("TRACKER_HEADS.TRACKER_NAME", "IoUTrackerPlus"),
    "SeqTracker": ("TRACKER_HEADS.TRACKER_NAME", "SeqTracker"),
    "SOLO-Track": ("TRACKER_HEADS.TRACKER_NAME", "EmbeddingTracker", "TRACKER_HEADS.CUES.ENABLED", "False"),
    "SOLO-Track + cues": (  # MaskTrack R-CNN's post-processing as published, METHOD 5.4
        *("TRACKER_HEADS.TRACKER_NAME", "EmbeddingTracker"),
        *("TRACKER_HEADS.CUES.ENABLED", "True", "TRACKER_HEADS.PROTO_UPDATE", "last"),
    ),
}


def compare_trackers(
    cfg: CfgNode, model: nn.Module, dataset_name: str, output: str, trackers: Mapping[str, Sequence[str]] = TRACKERS
) -> dict[str, dict[str, float]]:
    """Score each tracker as YouTube-VIS does; the network runs once for all of them.

    Args:
        cfg: of the model.
        model: detects and embeds.
        dataset_name: registered YouTube-VIS videos with annotations.
        output: folder; each tracker's results.json goes to a folder of its own in it.
        trackers: row name -> config overrides.

    Returns:
        Row name -> {"AP": percent, "AP50": ..., ...}, NaN where undefined.

    Raises:
        ConfigError: an override that cannot work.
        DatasetError: there is no such data set, or it holds images, or no annotations.
        YTVISFormatError: the annotations are faulty.
        OSError: ``output`` cannot be made.
    """
    json_file = dataset_metadata(dataset_name).json_file
    truth = read_annotation_file(json_file, required=("videos", "annotations"))
    if not truth["annotations"]:
        raise DatasetError(f"{json_file} has no annotations, so trackers cannot be compared on {dataset_name}.")
    read_ground_truth(truth, json_file)  # its faults show now and not when everything has been tracked
    built = {}
    for name, overrides in trackers.items():
        variant = cfg.clone()
        variant.defrost()
        variant.merge_from_list(list(overrides))
        check_config(variant)
        built[name] = build_tracker(variant, class_ids=sorted(tracked_categories(variant, dataset_name)))
    category_ids = scored_categories(cfg, dataset_name)
    evaluators = {
        name: YTVISEvaluator(dataset_name, results_folder(output, name), category_ids, cfg.DATASETS.VIDEO_SUBSET, cfg.TEST.BOX_TUBES)
        for name in built
    }
    os.makedirs(output, exist_ok=True)
    video_tracker = VideoTracker.from_config(cfg, model, dataset_name).eval()
    for video in tqdm(load_dataset(dataset_name), desc="videos", unit="video"):
        results = video_tracker.compare(video, built, video["video_id"])
        for name, evaluator in evaluators.items():
            evaluator.process([video], [results[name]])
    return {name: dict(evaluator.evaluate()["segm"]) for name, evaluator in evaluators.items()}


def results_folder(output: str, tracker: str) -> str:
    """Where :func:`compare_trackers` puts a row's results.json."""
    return os.path.join(output, tracker.replace(" ", "_"))
