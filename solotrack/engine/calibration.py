"""Calibrate the null logit of a tracker without video labels (METHOD 5.3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import tracker_similarity
from ..data.annotation_file import DatasetError
from ..data.clip_mapper import sample_clips
from ..data.clip_sets import load_clip_videos
from ..data.frames import FrameError, open_frames
from ..data.loader import training_records, training_samples
from ..ops.masks import mask_iou
from ..ops.similarity import pairwise_similarity
from ..tracking.base import select_instances
from .streaming import VideoTracker

__all__ = ["CalibrateNullLogit", "calibrate_null_logit", "equal_error_threshold", "least_error_threshold"]

_MIN_SAMPLES = 20  # of known and of new objects; fewer say nothing


def equal_error_threshold(known: torch.Tensor, new: torch.Tensor) -> tuple[float, float]:
    """The threshold at which as large a share of ``known`` falls below it as of ``new`` stands at or above it.

    Args:
        known: (n,) largest similarity of objects that have a track.
        new: (m,) largest similarity of objects that have none.

    Returns:
        The threshold, and the mean of the two error rates there.
    """
    candidates, missed, fooled = _errors(known, new)
    best = (missed - fooled).abs().argmin()
    return candidates[best].item(), ((missed + fooled) / 2)[best].item()


def least_error_threshold(known: torch.Tensor, new: torch.Tensor, new_share: float) -> tuple[float, float]:
    """The threshold with the fewest objects on its wrong side, where a share ``new_share`` of all objects that come by is new (METHOD 16).

    Args:
        known: (n,) largest similarity of objects that have a track.
        new: (m,) largest similarity of objects that have none; n and m have no part in ``new_share``.
        new_share: above 0 and below 1. Tracks last: in a video of T frames that each object stays in, 1 / T of what is seen is new.

    Returns:
        The threshold, and the share of objects on its wrong side.
    """
    candidates, missed, fooled = _errors(known, new)
    wrong = (1 - new_share) * missed + new_share * fooled
    best = wrong.argmin()
    return candidates[best].item(), wrong[best].item()


def _errors(known: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Thresholds (c,), and at each the share of ``known`` below it and that of ``new`` at or above it."""
    candidates = torch.cat([known, new]).unique()
    missed = torch.searchsorted(known.sort().values, candidates) / len(known)
    fooled = 1 - torch.searchsorted(new.sort().values, candidates) / len(new)
    return candidates, missed, fooled


def _embeddings_of_truth(prediction: Instances, truth: Instances, min_iou: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (m, D) of the detections that cover an annotated object best, and those objects' ids (m,)."""
    if len(prediction) == 0 or len(truth) == 0:
        return prediction.embeddings[:0], truth.gt_ids[:0]
    iou, best = mask_iou(truth.gt_masks.tensor, prediction.pred_masks).max(dim=1)
    found = iou >= min_iou
    return prediction.embeddings[best[found]], truth.gt_ids[found]


def calibrate_null_logit(cfg: CfgNode, model: nn.Module, seed: int = 0, records: Sequence[Any] | None = None) -> tuple[float, float] | None:
    """Set ``model.embedding_head.null_logit`` from pairs of views of labelled images, or of frames of unlabelled videos.

    The null logit is a threshold on the largest similarity: with a CALIBRATION.NEW_SHARE of 0 the one at which known objects fall below
    it as often as new ones reach it, else the one with the fewest mistakes where that share of objects is new. Known and new objects
    come from what CALIBRATION.SOURCE names:

    * "images": two strong views of a training image stand for two frames of a video. A share of the objects (CALIBRATION.DROP) is hidden
      from the first; in the second these are new, the others known. CALIBRATION.DISTRACTORS objects of the images before are remembered
      beside those of the first view, as tracks are whose objects have left.
    * "clips": two frames of a video of DATASETS.TRAIN_CLIPS. Detections that are each other's most similar are taken for one object,
      which is known; with its match left out of the first frame it would be new.

    Embeddings are read from detections, as in tracking.

    Args:
        cfg: TRACKER_HEADS and DATASETS are used, and INPUT.VIEWS or INPUT.CLIPS.MAX_GAP.
        model: a SOLOTrack with an embedding head.
        seed: of the images, the views and the hidden objects, or of the clips.
        records: the images, ``training_records(cfg, CALIBRATION.IMAGES, seed)``, or the videos, ``load_clip_videos(cfg)``; None reads the
            data sets for them.

    Returns:
        (null logit, share of objects on its wrong side: the mean of the two kinds', or with a NEW_SHARE that of all objects), or None
        (and the buffer left alone) when the detector finds too few objects to tell.

    Raises:
        ConfigError, DatasetError, FileNotFoundError: data sets that cannot be read. Images and frames that cannot be are left out, with a
            warning.
    """
    similarities = _in_clips if cfg.TRACKER_HEADS.CALIBRATION.SOURCE == "clips" else _in_views
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            known, new = similarities(cfg, model, seed, records)
    finally:
        model.train(was_training)
    logger = logging.getLogger(__name__)
    if min(len(known), len(new)) < _MIN_SAMPLES:
        logger.warning(f"Null logit not calibrated: only {len(known)} known and {len(new)} new objects were detected.")
        return None
    share = cfg.TRACKER_HEADS.CALIBRATION.NEW_SHARE
    value, error = least_error_threshold(known, new, share) if share > 0 else equal_error_threshold(known, new)
    model.embedding_head.null_logit.fill_(value)
    missed, fooled = (known < value).float().mean().item(), (new >= value).float().mean().item()
    logger.info(f"Null logit {value:.3f}: {missed:.1%} of {len(known)} known and {fooled:.1%} of {len(new)} new objects on the wrong side.")
    if share > 0 and max(missed, fooled) > 0.5:
        kinds = ("new", "known") if fooled > missed else ("known", "new")
        logger.warning(
            "Known and new objects look alike: mistakes are fewest where"
            f" {max(missed, fooled):.0%} of the {kinds[0]} objects are taken for {kinds[1]}."
            " TRACKER_HEADS.CALIBRATION.NEW_SHARE 0 mistakes both kinds equally often instead."
        )
    return value, error


def _in_views(cfg: CfgNode, model: nn.Module, seed: int, records: Sequence[Any] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest similarities (n,) of known and (m,) of new objects in the second views of labelled images."""
    metric, scale = tracker_similarity(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SOLO_TRACK.EMB.VIEWS = 2
    if records is None:
        records = training_records(cfg, cfg.TRACKER_HEADS.CALIBRATION.IMAGES, seed)
    hidden = torch.Generator().manual_seed(seed)
    known, new = [torch.empty(0)], [torch.empty(0)]
    gone: list[torch.Tensor] = []  # objects of the images before
    for record in records:
        try:
            (pair,) = training_samples(cfg, [record], seed)
        except (FrameError, DatasetError) as error:  # it comes before a checkpoint: what was learned until then is worth more than an image
            logging.getLogger(__name__).warning(f"The null logit is calibrated without an image. {error}")
            continue
        # one image at a time: padding to a larger one would move SOLO's grid
        one, two = (x["instances"].to("cpu") for x in model([{"image": pair["image"]}, {"image": pair["second_view"]["image"]}]))
        memory, memory_ids = _embeddings_of_truth(one, pair["instances"])
        queries, query_ids = _embeddings_of_truth(two, pair["second_view"]["instances"])
        kept = torch.rand(len(memory), generator=hidden) >= cfg.TRACKER_HEADS.CALIBRATION.DROP
        if not kept.any() or len(queries) == 0:
            continue
        remembered = torch.cat([memory[kept], *gone])
        score = pairwise_similarity(queries, remembered, metric, scale).max(dim=1).values
        is_known = torch.isin(query_ids, memory_ids[kept])
        known.append(score[is_known])
        new.append(score[~is_known])
        gone = [remembered[: cfg.TRACKER_HEADS.CALIBRATION.DISTRACTORS]]
    return torch.cat(known), torch.cat(new)


def _in_clips(cfg: CfgNode, model: nn.Module, seed: int, videos: Sequence[Any] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities (n,) of objects with their match in another frame, and (n,) the largest with anything else of that frame."""
    metric, scale = tracker_similarity(cfg)
    trk, detector, rng = cfg.TRACKER_HEADS, VideoTracker.from_config(cfg, model), np.random.default_rng(seed)
    videos = load_clip_videos(cfg) if videos is None else videos
    known, new = [torch.empty(0)], [torch.empty(0)]
    for index in rng.integers(len(videos), size=trk.CALIBRATION.IMAGES):
        try:
            video = open_frames(videos[index]["source"], cfg.INPUT.FORMAT)
            (pair,) = sample_clips(video.count(), 1, 2, cfg.INPUT.CLIPS.MAX_GAP, rng)
            frames = list(video.read(pair))
        except FrameError as error:  # it comes before a checkpoint: what was learned until then is worth more than a pair
            logging.getLogger(__name__).warning(f"The null logit is calibrated without a pair of frames. {error}")
            continue
        found = [detector.detect_image(frame.image) for frame in frames]
        seen = [select_instances(x, trk.SCORE_THRESH, trk.MAX_PER_FRAME, None, trk.PRE_NMS_THRESH)[0].embeddings.cpu() for x in found]
        if len(seen[0]) < 2 or len(seen[1]) == 0:
            continue
        similarity = pairwise_similarity(seen[1], seen[0], metric, scale)
        best, match = similarity.max(dim=1)
        mutual = similarity.argmax(dim=0)[match] == torch.arange(len(match))
        rest = similarity.scatter(1, match[:, None], -torch.inf).max(dim=1).values
        known.append(best[mutual])
        new.append(rest[mutual])
    return torch.cat(known), torch.cat(new)


class CalibrateNullLogit(HookBase):
    """Calibrate before every evaluation and checkpoint, so that each carries its own value; register it before both.

    Args:
        cfg: as for :func:`calibrate_null_logit`.
        model: the model in training, perhaps wrapped in DistributedDataParallel; the main process calibrates and tells the others.
        periods: iterations between evaluations and between checkpoints; 0 means only at the end.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, periods: tuple[int, ...]) -> None:
        self.cfg = cfg
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.periods = periods
        self._records = None  # drawn once: reading a large data set takes long

    def before_train(self) -> None:
        if self.cfg.TRACKER_HEADS.CALIBRATION.SOURCE == "clips" and comm.is_main_process():
            self._records = load_clip_videos(self.cfg)  # now, so that a wrong path does not show at the first checkpoint

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done != self.trainer.max_iter and not any(period > 0 and done % period == 0 for period in self.periods):
            return
        if comm.is_main_process():
            if self._records is None:
                self._records = training_records(self.cfg, self.cfg.TRACKER_HEADS.CALIBRATION.IMAGES, seed=0)
            calibrate_null_logit(self.cfg, self.model, seed=0, records=self._records)
        if comm.get_world_size() > 1:
            torch.distributed.broadcast(self.model.embedding_head.null_logit, src=0)
