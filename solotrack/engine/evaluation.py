"""Evaluate a model on every data set of DATASETS.TEST: COCO images or YouTube-VIS videos."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import log_first_n
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..config import ConfigError
from ..data.catalog import dataset_metadata
from ..data.loader import build_video_loader
from ..data.mappers import ImageMapper
from ..evaluation.ytvis_evaluator import YTVISEvaluator
from .streaming import VideoTracker, scored_categories

__all__ = ["evaluate", "evaluate_images", "evaluate_videos"]


def evaluate(cfg: CfgNode, model: nn.Module) -> OrderedDict:
    """Evaluate on each of ``cfg.DATASETS.TEST``, in as many processes as are running.

    Returns:
        {"segm": {"AP": percent, ...}} for one data set, {name: the same} for several; empty except in the main process.

    Raises:
        ConfigError: DATASETS.TEST is empty, or names a data set of another kind.
    """
    if not cfg.DATASETS.TEST:
        raise ConfigError("There is nothing to evaluate: DATASETS.TEST is empty; name at least one data set.")
    if isinstance(model, DistributedDataParallel):
        model = model.module
        for buffer in model.buffers():  # BatchNorm's statistics are each process's own in training; what is scored is what is saved
            dist.broadcast(buffer, src=0)
    results = OrderedDict()
    for name in cfg.DATASETS.TEST:
        kind = dataset_metadata(name).get("evaluator_type")
        if kind not in ("coco", "ytvis"):
            raise ConfigError(f"DATASETS.TEST names {name}, which is registered neither as COCO images nor as YouTube-VIS videos.")
        run = evaluate_images if kind == "coco" else evaluate_videos
        results[name] = run(cfg, model, name)
        if comm.is_main_process() and results[name]:
            log_first_n(20, f"Results of {name} in csv format:", name=__name__)
            print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_images(cfg: CfgNode, model: nn.Module, name: str) -> dict:
    """Frame-level box and mask AP of a COCO data set."""
    # One at a time: padding to a larger image of the batch would move SOLO's grid.
    loader = build_detection_test_loader(cfg, name, mapper=ImageMapper(cfg, is_train=False), batch_size=1)
    evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), output_dir=_folder(cfg, name))
    return inference_on_dataset(model, loader, evaluator) or {}


def evaluate_videos(cfg: CfgNode, model: nn.Module, name: str) -> dict:
    """Tube AP of a YouTube-VIS data set with the tracker of TRACKER_HEADS; the model is left as it was, whatever TTA.MODE."""
    dataset_metadata(name)  # completes what the evaluator reads
    category_ids = scored_categories(cfg, name)
    evaluator = YTVISEvaluator(name, _folder(cfg, name), category_ids, cfg.DATASETS.VIDEO_SUBSET, cfg.TEST.BOX_TUBES)
    with _put_back(model, cfg.TTA.ENABLED and cfg.TTA.MODE == "continual"):
        return inference_on_dataset(VideoTracker.from_config(cfg, model, name), build_video_loader(name), evaluator) or {}


@contextmanager
def _put_back(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Afterwards the model has the weights it had, if ``wanted``: a training that scores itself goes on from its own."""
    before = {name: value.clone() for name, value in model.state_dict().items()} if wanted else {}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.state_dict().items() if wanted else ():
                value.copy_(before[name])


def _folder(cfg: CfgNode, name: str) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "inference", name)
