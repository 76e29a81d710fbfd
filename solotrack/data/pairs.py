"""Pairs of frames of labelled videos, for baselines that learn association from annotated tracks (METHOD 7.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList

from .annotation_file import DatasetError
from .catalog import dataset_metadata
from .mappers import ImageMapper
from .ytvis_labels import load_labelled_frames

__all__ = ["PairMapper", "load_pairs"]


class PairMapper:
    """Maps a frame together with a random other labelled frame of its video, its reference; both get the same augmentation.

    The random numbers come from NumPy's global state, as the ImageMapper's do.
    """

    def __init__(self, frames: Sequence[dict[str, Any]], mapper: ImageMapper) -> None:
        """
        Args:
            frames: all labelled frames, as of ``load_labelled_frames``.
            mapper: of single frames.
        """
        self.frames = frames
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            record: ``index`` of the frame, and ``first`` and ``count`` of its video's frames in ``frames``, at least 2.

        Returns:
            What the mapper makes of the frame, and ``reference`` {file_name, image, instances}. In both, ``gt_ids`` are the tracks.

        Raises:
            FrameError, DatasetError: as the ImageMapper.
        """
        other = record["first"] + np.random.randint(record["count"] - 1)  # noqa: NPY002
        other += other >= record["index"]
        state = np.random.get_state()  # noqa: NPY002
        sample = self._map(record["index"])
        np.random.set_state(state)  # noqa: NPY002  equal random numbers make equal transforms of frames of one size
        reference = self._map(other)
        return sample | {"reference": {key: reference[key] for key in ("file_name", "image", "instances")}}

    def _map(self, index: int) -> dict[str, Any]:
        frame = self.frames[index]
        sample = self.mapper(frame)
        tracks = torch.tensor([annotation["id"] for annotation in frame["annotations"]], dtype=torch.int64)
        sample["instances"].gt_ids = tracks[sample["instances"].gt_ids]
        return sample


def load_pairs(cfg: CfgNode) -> tuple[list[dict[str, Any]], PairMapper]:
    """The frames of the labelled videos of DATASETS.TRAIN that have a partner, as records for the mapper, and the mapper.

    Returns:
        Records {index, first, count, height, width}, see :class:`PairMapper`.

    Raises:
        FileNotFoundError, DatasetError: a data set cannot be read, or no video has two frames with objects.
    """
    frames: list[dict[str, Any]] = []
    records = []
    for name in cfg.DATASETS.TRAIN:
        metadata = dataset_metadata(name)
        for _, video in groupby(load_labelled_frames(metadata.json_file, metadata.image_root), key=lambda frame: frame["video_id"]):
            video = list(video)
            common = {"first": len(frames), "count": len(video), "height": video[0]["height"], "width": video[0]["width"]}
            if len(video) > 1:
                records += [{"index": len(frames) + i, **common} for i in range(len(video))]
            frames += video
    if not records:
        raise DatasetError(
            f"No video of {', '.join(cfg.DATASETS.TRAIN)} has two frames that show an object; association is learned from pairs of frames."
        )
    # serialised: workers share the memory
    return records, PairMapper(DatasetFromList(frames, copy=False), ImageMapper(cfg, is_train=True))
