"""Streaming video inference: read frames ahead, detect in batches, link frame by frame, keep only run-length codes."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import Instances
from detectron2.utils.logger import log_first_n
from torch import nn

from ..adaptation import TestTimeAdaptation
from ..config import num_classes
from ..data.catalog import class_to_dataset_id, dataset_metadata, model_class_names
from ..data.categories import subset_category_ids
from ..data.frames import Frame, FrameError, FrameSource, open_frames
from ..data.intensity import Stretch
from ..data.prefetch import prefetch
from ..ops.rle import encode_masks
from ..tracking.base import OnlineTracker, build_tracker
from ..tracking.finalize import TrackRecorder
from ..tracking.offline import OfflineTracker
from .offline import PendingVideo

__all__ = ["VideoTracker", "amp_dtype", "record", "scored_categories", "track_detections", "tracked_categories"]


@dataclass(frozen=True)
class _Prepared:
    """A frame and the model's input made from it."""

    frame: Frame
    input: dict[str, Any]


def record(recorder: TrackRecorder, frame_index: int, instances: Instances) -> None:
    """Note down a frame's tracked detections: masks as run-length codes, nothing of those that belong to no track or have an empty mask.

    Args:
        recorder: of the video.
        frame_index: position in the video, from 0.
        instances: n detections with ``pred_masks`` (n, H, W) bool, ``ID``, ``scores`` and ``pred_classes`` (n,).
    """
    instances = instances[(instances.ID >= 0) & instances.pred_masks.flatten(1).any(dim=1)]
    recorder.add(frame_index, instances.ID, encode_masks(instances.pred_masks), instances.scores, instances.pred_classes)


def track_detections(
    detections: Iterable[tuple[Frame, Instances]], tracker: OnlineTracker, recorder: TrackRecorder | None = None
) -> Iterator[tuple[Frame, Instances]]:
    """Link the detections of one video.

    Args:
        detections: frames in order with their detections, e.g. :meth:`VideoTracker.detect`.
        tracker: is reset first.
        recorder: gets every frame's result, if given.

    Yields:
        the frame and the detections that the tracker kept, with ``ID``.
    """
    tracker.reset()
    for frame, instances in detections:
        instances = tracker.update(instances)
        if recorder is not None:
            record(recorder, frame.index, instances)
        yield frame, instances


def _categories(dataset_name: str) -> list[dict[str, Any]]:
    metadata = dataset_metadata(dataset_name)
    return [{"id": i, "name": metadata.thing_classes[c]} for i, c in metadata.thing_dataset_id_to_contiguous_id.items()]


def scored_categories(cfg: CfgNode, dataset_name: str) -> list[int] | None:
    """Category ids of a video data set that are scored (DATASETS.VIDEO_CATEGORIES), whether the model knows them or not; None: all."""
    if cfg.DATASETS.VIDEO_CATEGORIES == "all":
        return None
    return subset_category_ids(_categories(dataset_name), cfg.DATASETS.VIDEO_CATEGORIES)


def tracked_categories(cfg: CfgNode, dataset_name: str) -> dict[int, int]:
    """Class of the model -> category id of a video data set, for the classes that are scored there (DATASETS.VIDEO_CATEGORIES).

    Videos without categories keep the model's classes, numbered from 1.
    """
    categories = _categories(dataset_name)
    if not categories:
        return _numbered_from_one(num_classes(cfg))
    scored = scored_categories(cfg, dataset_name)
    mapping = class_to_dataset_id(model_class_names(cfg), categories)
    return {label: category for label, category in mapping.items() if scored is None or category in scored}


def _numbered_from_one(count: int) -> dict[int, int]:
    return {label: label + 1 for label in range(count)}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """The type of autocast regions, or None without AMP."""
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE == "auto":
        return torch.bfloat16 if torch.device(cfg.MODEL.DEVICE).type == "cpu" else torch.float16
    return getattr(torch, cfg.SOLVER.AMP.DTYPE)


class VideoTracker(nn.Module):
    """Detector + tracker over whole videos, with memory that grows with the video's length by run-length codes alone.

    It takes Detectron2's place of a model in ``inference_on_dataset``: a list of video dicts in, a list of track results a video out.
    """

    def __init__(
        self,
        model: nn.Module,
        tracker: OnlineTracker | OfflineTracker,
        make_recorder: Callable[[], TrackRecorder],
        class_to_dataset_id: Mapping[int, int] | Sequence[int],
        *,
        min_size: int = 480,
        max_size: int = 1333,
        image_format: str = "RGB",
        frames_per_batch: int = 8,
        decode_workers: int = 2,
        stretch: Stretch | None = None,
        autocast_dtype: torch.dtype | None = None,
        adaptation: TestTimeAdaptation | None = None,
    ) -> None:
        """
        Args:
            model: Detectron2 model of single images, with a ``device``; a calibrated null logit at ``model.embedding_head.null_logit``
                (NaN: none) is handed to trackers that have ``set_null_logit``.
            tracker: links the detections.
            make_recorder: returns an empty recorder, called for every video.
            class_to_dataset_id: category id in the results of each class that the tracker lets through.
            min_size: pixels of the shorter side of what the model sees; 0 leaves frames as they are.
            max_size: most pixels of the longer side.
            image_format: "RGB" or "BGR", the model's channel order.
            frames_per_batch: frames a network call takes. Frames of different size never share a batch: padding would change results.
            decode_workers: threads that read and resize frames ahead; 0 does it in between.
            stretch: of the grey levels that the model sees, as in training.
            autocast_dtype: run the model under autocast in this type; None: as it is.
            adaptation: of the model to each video; None: none. Single frames (:meth:`detect_image`) are not adapted to.
        """
        super().__init__()
        self.model = model
        self.tracker = tracker
        self.make_recorder = make_recorder
        self.class_to_dataset_id = class_to_dataset_id
        self.min_size, self.max_size = min_size, max_size
        self.image_format = image_format
        self.frames_per_batch = frames_per_batch
        self.decode_workers = decode_workers
        self.stretch = stretch
        self.autocast_dtype = autocast_dtype
        self.adaptation = adaptation

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module, dataset_name: str | None = None) -> VideoTracker:
        """As ``cfg`` describes it.

        Args:
            cfg: a SOLO-Track config.
            model: built from it.
            dataset_name: registered videos to be scored: only their categories are tracked and results have their ids. None tracks all
                classes; category ids are then the classes counted from 1.
        """
        categories = tracked_categories(cfg, dataset_name) if dataset_name else _numbered_from_one(num_classes(cfg))
        trk = cfg.TRACKER_HEADS
        return cls(
            model,
            build_tracker(cfg, class_ids=sorted(categories)),
            partial(TrackRecorder, track_score=trk.TRACK_SCORE, topk=trk.TRACK_SCORE_TOPK, track_category=trk.TRACK_CATEGORY),
            categories,
            min_size=cfg.INPUT.MIN_SIZE_TEST,
            max_size=cfg.INPUT.MAX_SIZE_TEST,
            image_format=cfg.INPUT.FORMAT,
            frames_per_batch=cfg.TEST.FRAMES_PER_BATCH,
            decode_workers=cfg.TEST.DECODE_WORKERS,
            stretch=Stretch.from_config(cfg),
            autocast_dtype=amp_dtype(cfg),
            adaptation=TestTimeAdaptation(cfg) if cfg.TTA.ENABLED else None,
        )

    def forward(self, videos: Sequence[Mapping[str, Any]]) -> list[list[dict]]:
        """Track results of each video dict."""
        return [self.track(video, video["video_id"]) for video in videos]

    def track(self, source: Any, video_id: int = 1) -> list[dict]:
        """The tracks of one video in YouTube-VIS form; ``source`` as for ``open_frames``."""
        return self.compare(source, {"": self.tracker}, video_id)[""]

    def compare(self, source: Any, trackers: Mapping[str, OnlineTracker | OfflineTracker], video_id: int = 1) -> dict[str, list[dict]]:
        """The tracks that each of several trackers makes of the very same detections; the network runs once."""
        recorders = {name: self.make_recorder() for name in trackers}
        pending = {name: PendingVideo(tracker) for name, tracker in trackers.items() if isinstance(tracker, OfflineTracker)}
        for tracker in trackers.values():
            self.start(tracker)
        length = 0
        with closing(self.detect(source)) as detections:
            for frame, instances in detections:
                for name, tracker in trackers.items():
                    if name in pending:
                        pending[name].add(frame.index, instances)
                    else:
                        record(recorders[name], frame.index, tracker.update(instances))
                length = frame.index + 1
        for name, video in pending.items():
            video.record(recorders[name])
        return {name: recorder.finish(video_id, length, self.class_to_dataset_id) for name, recorder in recorders.items()}

    def stream(
        self, source: Any, recorder: TrackRecorder | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Frame, Instances]]:
        """Yield every frame with its tracked detections (``ID``), as soon as its batch is through the network.

        With an offline tracker the first frame comes once the last is through the network: the frames are read twice.

        Args:
            source: as for ``open_frames``.
            recorder: notes the tracks down, if given.
            stop: asked after every frame; True ends the video there. In an offline tracker's first reading it does too: the frames until
                then are linked and all of them yielded.

        Raises:
            FrameError: a frame cannot be read; or frames that come only once, as a camera's, are to be read twice.
        """
        self.start(self.tracker)
        if isinstance(self.tracker, OfflineTracker):
            yield from self._stream_twice(open_frames(source, self.image_format), source, recorder, stop)
            return
        with closing(self.detect(source)) as detections:
            for frame, instances in track_detections(detections, self.tracker, recorder):
                yield frame, instances
                if stop():
                    return

    def _stream_twice(
        self, frames: FrameSource, source: Any, recorder: TrackRecorder | None, stop: Callable[[], bool]
    ) -> Iterator[tuple[Frame, Instances]]:
        if not frames.repeatable:
            raise FrameError(
                f"{type(self.tracker).__name__} is an offline tracker and reads a video twice, but a camera or an iterator gives its frames"
                " only once; save them as a video or a list first, or choose an online TRACKER_HEADS.TRACKER_NAME."
            )
        pending, stopped = PendingVideo(self.tracker), False
        with closing(self.detect(source)) as detections:
            for frame, instances in detections:
                pending.add(frame.index, instances)
                if stopped := stop():
                    break
        with closing(prefetch(frames, self.decode_workers, self.frames_per_batch)) as again:
            for instances, frame in zip(pending.frames(), again, strict=not stopped):
                if recorder is not None:
                    record(recorder, frame.index, instances)
                yield frame, instances
                if not stopped and stop():
                    return

    def detect(self, source: Any) -> Iterator[tuple[Frame, Instances]]:
        """Yield every frame with its detections at the frame's own size, not yet linked.

        Raises:
            FrameError: a frame cannot be read, or differs from the size that its video dict declares.
        """
        declared = (source["height"], source["width"]) if isinstance(source, Mapping) and "height" in source else None
        frames = open_frames(source, self.image_format)
        prepare = partial(self._prepare, declared=declared)
        with ExitStack() as stack:
            if self.adaptation is not None:
                stack.enter_context(self.adaptation.adapting(self.model, frames, lambda frame: prepare(frame).input))
            ahead = stack.enter_context(
                closing(prefetch(frames, self.decode_workers, self.frames_per_batch + self.decode_workers, prepare))
            )
            previous = None
            for batch in self._batches(ahead):
                if self.adaptation is not None:
                    self.adaptation.before_frame(self.model, previous, batch[0].input)
                    previous = batch[-1].input
                done = deque(zip((x.frame for x in batch), self._run([x.input for x in batch]), strict=True))
                batch.clear()
                while done:  # a frame's masks go as soon as the caller has had them
                    yield done.popleft()

    def start(self, tracker: OnlineTracker | OfflineTracker) -> None:
        """Make a tracker ready for a video: no tracks, and the model's calibrated null logit."""
        tracker.reset()
        null_logit = getattr(getattr(self.model, "embedding_head", None), "null_logit", None)
        if null_logit is not None and hasattr(tracker, "set_null_logit"):
            value = float(null_logit)
            if math.isnan(value) and tracker.needs_null_logit:
                log_first_n(
                    logging.WARNING,
                    "The checkpoint's null logit is not calibrated (TRACKER_HEADS.CALIBRATION): 0 decides what is new. "
                    "Set TRACKER_HEADS.NULL_LOGIT, or take a TRACKER_HEADS.SIM with NEW_THRESH.",
                    name=__name__,
                )
            tracker.set_null_logit(None if math.isnan(value) else null_logit)  # the buffer itself: adaptation moves it

    def detect_image(self, image: np.ndarray) -> Instances:
        """Detections of a single frame (H, W, 3) uint8 in ``image_format``."""
        return self._run([self._prepare(Frame(0, image, "frame")).input])[0]

    def _prepare(self, frame: Frame, declared: tuple[int, int] | None = None) -> _Prepared:
        """Resize as Detectron2's ResizeShortestEdge does; runs in the reading threads."""
        height, width = frame.image.shape[:2]
        if declared is not None and (height, width) != tuple(declared):
            raise FrameError(
                f"The frame {frame.name} is {width}x{height} but its video is declared as {declared[1]}x{declared[0]}; "
                "correct width and height in the annotation file, or resize the frames."
            )
        image = frame.image if self.stretch is None else self.stretch(frame.image)
        if self.min_size > 0:
            size = T.ResizeShortestEdge.get_output_shape(height, width, self.min_size, self.max_size)
            if size != (height, width):
                image = T.ResizeTransform(height, width, *size).apply_image(image)
        tensor = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))  # (3, H, W)
        return _Prepared(frame, {"image": tensor, "height": height, "width": width, "file_name": frame.name})

    def _batches(self, prepared: Iterable[_Prepared]) -> Iterator[list[_Prepared]]:
        batch: list[_Prepared] = []
        for item in prepared:
            if batch and item.input["image"].shape != batch[0].input["image"].shape:
                yield batch
                batch = []
            batch.append(item)
            if len(batch) == self.frames_per_batch or (self.adaptation is not None and self.adaptation.waiting):
                yield batch
                batch = []
        if batch:
            yield batch

    def _run(self, inputs: list[dict[str, Any]]) -> list[Instances]:
        if self.model.training:
            raise RuntimeError("The model is in training mode; call eval() before tracking.")
        device = self.model.device.type
        autocast = torch.autocast(device, dtype=self.autocast_dtype) if self.autocast_dtype else contextlib.nullcontext()
        with torch.no_grad(), autocast:
            return [output["instances"] for output in self.model(inputs)]
