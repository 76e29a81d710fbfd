"""Unlabelled video -> clip: a few frames of one video, all augmented alike."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from .frames import FrameError, FrameSource, open_frames
from .intensity import Stretch
from .views import ColorJitter, RandomSimilarity

__all__ = ["ClipMapper", "sample_clips"]


def sample_clips(frame_count: int, clips: int, frames: int, max_gap: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """Draw clips of a video (METHOD 3.5).

    The gaps are drawn uniformly and independently, then the place among those at which the clip fits into the video. Where not all clips
    fit, the largest gap is lowered until they do.

    Args:
        frame_count: frames of the video, at least ``frames``.
        clips: number of clips.
        frames: frames of a clip, at least 2.
        max_gap: frames from one of a clip to the next, 1 to this.
        rng: where the random numbers come from.

    Returns:
        For each clip the indices of its frames, ascending.

    Raises:
        ValueError: the video has fewer frames than a clip.
    """
    if frame_count < frames:
        raise ValueError(f"A clip of {frames} frames cannot be drawn from a video of {frame_count}.")
    largest = min(max_gap, (frame_count - 1) // (frames - 1))
    gaps = rng.integers(1, largest, (clips, frames - 1), endpoint=True)
    offsets = np.concatenate([np.zeros((clips, 1), np.int64), gaps.cumsum(axis=1)], axis=1)  # (clips, frames)
    starts = rng.integers(0, frame_count - offsets[:, -1])
    return [tuple(clip) for clip in (starts[:, None] + offsets).tolist()]


class ClipMapper:
    """Draws a clip of a video and one geometric augmentation for all its frames (METHOD 3.5).

    The random numbers come from NumPy's global state, as those of Detectron2's transforms do; the training loader seeds it for each sample.
    """

    @configurable
    def __init__(
        self,
        augmentations: list[T.Augmentation],
        image_format: str,
        frames: int = 2,
        max_gap: int = 3,
        view: RandomSimilarity | None = None,
        jitter: ColorJitter | None = None,
        stretch: Stretch | None = None,
    ) -> None:
        """
        Args:
            augmentations: of Detectron2, drawn once a clip: resize, flip.
            image_format: "RGB" or "BGR", of the mapped frames.
            frames: of a clip, at least 2.
            max_gap: frames of the video from one of a clip to the next, at most.
            view: applied after them, drawn for each frame; where the objects then are is left to the model to find.
            jitter: of the colours, drawn for each frame.
            stretch: applied to each frame as read.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.frames = frames
        self.max_gap = max_gap
        self.view = view
        self.jitter = jitter
        self.stretch = stretch

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        clips, views, flip = cfg.INPUT.CLIPS, cfg.INPUT.VIEWS, cfg.INPUT.RANDOM_FLIP
        augmentations = [T.ResizeShortestEdge(clips.MIN_SIZE_TRAIN, clips.MAX_SIZE_TRAIN, "choice")]
        if flip != "none":
            augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
        return {
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "frames": clips.FRAMES,
            "max_gap": clips.MAX_GAP,
            "view": RandomSimilarity(views.SHIFT, views.SCALE_RANGE, views.ROTATION, views.FLIP) if clips.VIEWS else None,
            "jitter": ColorJitter(clips.COLOR, cfg.INPUT.FORMAT) if clips.COLOR > 0 else None,
            "stretch": Stretch.from_config(cfg),
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """
        Args:
            record: a dict with ``source``, which ``open_frames`` takes; nothing else of it is looked at.

        Returns:
            ``frames``, list of (3, H, W) uint8 of one size, in the order of the video; ``file_names``, one a frame; ``height`` and
            ``width`` of the first frame as it was read; ``video``, its path or that of its first frame, the same for all its clips. Frames
            of another size are first brought to that of the clip's first frame.

        Raises:
            FrameError: a frame that cannot be read, or a video with fewer frames than a clip.
        """
        video = _open(record["source"], self.image_format)
        count = video.count()
        if count < self.frames:
            raise FrameError(
                f"The video {record['source']} has fewer frames ({count}) than a clip ({self.frames}): it was changed, or is cut short; "
                "take it out of the set or copy it again."
            )
        # what Detectron2's transforms draw from is NumPy's global state, which the loader seeds
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002
        (indices,) = sample_clips(count, 1, self.frames, self.max_gap, rng)
        read = video.read(indices)
        height, width = read[0].image.shape[:2]
        images = [self._prepared(frame.image, height, width) for frame in read]

        augmented = T.AugInput(images[0])
        transforms = self.augmentations(augmented)
        images = [augmented.image, *(transforms.apply_image(image) for image in images[1:])]
        for augmentation in (self.view, self.jitter):
            if augmentation is not None:
                images = [augmentation.get_transform(image).apply_image(image) for image in images]
        return {
            "frames": [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images],
            "file_names": [frame.name for frame in read],
            "height": height,
            "width": width,
            "video": record["source"] if isinstance(record["source"], str) else record["source"][0],
        }

    def _prepared(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        if self.stretch is not None:
            image = self.stretch(image)
        return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def _open(source: str | list[str], image_format: str) -> FrameSource:
    return _open_path(source, image_format) if isinstance(source, str) else open_frames(source, image_format)


@lru_cache(maxsize=4096)  # what is in a long folder or video file takes a while to find out; a file keeps 8 bytes a frame
def _open_path(path: str, image_format: str) -> FrameSource:
    return open_frames(path, image_format)
