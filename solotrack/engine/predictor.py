"""Track any video with a trained model: ``VideoPredictor(cfg).track("clip.mp4")``."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn
from tqdm import tqdm

from ..config import ConfigError, check_device, num_classes
from ..data.annotation_file import DatasetError
from ..data.catalog import model_class_names
from ..data.frames import Frame, FrameError, open_frames
from ..files import atomic_write
from ..ops.masks import resize_mask
from ..ops.rle import encode_masks
from ..tracking.base import build_tracker
from ..tracking.finalize import FinishedTrack, TrackRecorder
from .checkpoint import AtomicCheckpointer
from .streaming import VideoTracker

__all__ = ["Track", "TrackCollector", "VideoPredictor", "VideoTracks"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Track(FinishedTrack):
    """One instance through a video of T frames. Lists of T entries are made when they are asked for.

    Attributes:
        id: the identity, as in the frames' ``ID`` and in overlays.
        category_id: the class counted from 1.
        score: of the whole track, 0 to 1.
        rles: frame -> compressed RLE at the frame's size.
        scores: frame -> detection score.
        category: name of its class.
        length: T.
    """

    category: str
    length: int

    @property
    def segmentations(self) -> list[dict | None]:
        """T compressed RLEs at the frame's size, None where it is absent."""
        return [self.rles.get(frame) for frame in range(self.length)]

    @property
    def frame_scores(self) -> list[float | None]:
        """T detection scores, None where it is absent."""
        return [self.scores.get(frame) for frame in range(self.length)]

    @property
    def boxes(self) -> list[tuple[float, float, float, float] | None]:
        """T tight boxes (x1, y1, x2, y2) in pixels, right and bottom exclusive; None where it is absent."""
        return [None if rle is None else _box(rle) for rle in self.segmentations]

    def masks(self, frame: int) -> np.ndarray | None:
        """The mask (H, W) bool in a frame, None where it is absent.

        Raises:
            IndexError: the video has no such frame.
        """
        rle = self.rles.get(range(self.length)[frame])
        return None if rle is None else mask_util.decode(rle).astype(bool)


def _box(rle: dict) -> tuple[float, float, float, float]:
    x, y, width, height = mask_util.toBbox(rle).tolist()
    return x, y, x + width, y + height


@dataclass
class VideoTracks:
    """The tracks of one video.

    Attributes:
        length: number of frames, T.
        height, width: of the first frame, pixels.
        fps: frames a second, None where it is not known.
        tracks: in the order in which they appear.
        class_names: names of the model's classes.
        frame_names: T names, see ``Frame``.
    """

    length: int
    height: int
    width: int
    fps: float | None
    tracks: list[Track]
    class_names: Sequence[str]
    frame_names: list[str] = field(repr=False, default_factory=list)

    def results(self, video_id: int = 1) -> list[dict]:
        """In YouTube-VIS' result format, which knows one size a video: masks of other frames are brought to the first one's."""
        return list(self._results(video_id))

    def _results(self, video_id: int) -> Iterator[dict]:
        """One track after the other: a result is as long as the video, however short the track."""
        resized = sum(not self._fits(rle) for track in self.tracks for rle in track.rles.values())
        if resized:
            logger.warning(f"Frames differ in size: {resized} masks were resized to the first frame's {self.width} x {self.height} pixels.")
        for track in self.tracks:
            yield {"video_id": video_id, "category_id": track.category_id, "score": track.score, "segmentations": self._resized(track)}

    def _fits(self, rle: dict) -> bool:
        return list(rle["size"]) == [self.height, self.width]

    def _resized(self, track: Track) -> list[dict | None]:
        return [
            rle if rle is None or self._fits(rle) else encode_masks(resize_mask(mask_util.decode(rle), self.height, self.width)[None])[0]
            for rle in track.segmentations
        ]

    def save_results(self, path: str | os.PathLike, video_id: int = 1) -> None:
        """Write ``results`` as json."""
        with atomic_write(path) as file:
            for index, result in enumerate(self._results(video_id)):
                file.write(", " if index else "[")
                json.dump(result, file)
            file.write("]" if self.tracks else "[]")

    def save_video_json(self, path: str | os.PathLike, video_id: int = 1) -> None:
        """Write the YouTube-VIS file that goes with the results: the video with its frames' absolute paths and the categories."""
        names = [os.path.abspath(name) if _is_in_a_file(name) else name for name in self.frame_names]
        video = {"id": video_id, "height": self.height, "width": self.width, "length": self.length, "file_names": names}
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        with atomic_write(path) as file:
            json.dump({"videos": [video], "categories": categories, "annotations": []}, file)

    def save_csv(self, path: str | os.PathLike) -> None:
        """Write a row for each track in each frame: frame, time_s, track_id, category, score, x1, y1, x2, y2, area.

        Frames count from 0; ``time_s`` is empty where there are no frames a second; boxes and area are in pixels.
        """
        rows = []
        for track in self.tracks:
            for frame, rle in track.rles.items():
                time_s = f"{frame / self.fps:.3f}" if self.fps else ""
                box, score = (f"{value:g}" for value in _box(rle)), f"{track.scores[frame]:.4f}"
                rows.append((frame, time_s, track.id, track.category, score, *box, int(mask_util.area(rle))))
        with atomic_write(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("frame", "time_s", "track_id", "category", "score", "x1", "y1", "x2", "y2", "area"))
            writer.writerows(sorted(rows, key=lambda row: (row[0], row[2])))


def _is_in_a_file(name: str) -> bool:
    """Whether a frame's name is a path, perhaps with the frame's number behind it."""
    return os.path.exists(name) or os.path.exists(name.rpartition("#")[0])


class TrackCollector:
    """Gathers a video's tracks frame by frame: a :class:`TrackRecorder` in streaming that also keeps what people want to see.

    Args:
        recorder: decides on the tracks' scores and categories.
        class_names: names of the model's classes.
        fps: frames a second of the video.
    """

    def __init__(self, recorder: TrackRecorder, class_names: Sequence[str], fps: float | None = None) -> None:
        self._recorder = recorder
        self._class_names = class_names
        self._fps = fps
        self._frame_names: list[str] = []
        self._size = (0, 0)

    def add(self, frame_index: int, ids, rles: Sequence[dict], scores, classes) -> None:
        """As ``TrackRecorder.add``, for detections that have a track and a mask."""
        self._recorder.add(frame_index, ids, rles, scores, classes)

    def add_frame(self, frame: Frame) -> None:
        """Count a frame, with or without tracks."""
        if not self._frame_names:
            self._size = frame.image.shape[:2]
        self._frame_names.append(frame.name)

    def finish(self) -> VideoTracks:
        """The tracks of the frames seen so far; the collector must not be used any more."""
        length = len(self._frame_names)
        finished = self._recorder.finish_tracks(length, range(1, len(self._class_names) + 1))
        tracks = [Track(**vars(track), category=self._class_names[track.category_id - 1], length=length) for track in finished]
        return VideoTracks(length, *self._size, self._fps, tracks, self._class_names, self._frame_names)


def _class_names(cfg: CfgNode) -> list[str]:
    """As ``model_class_names``, or "class 1", "class 2", ... where the config has no names and the training set is not on this machine."""
    count = num_classes(cfg)
    try:
        names = model_class_names(cfg)
    except (ConfigError, DatasetError, FileNotFoundError):
        names = []
    if len(names) == count:
        return names
    logger.warning("Classes have numbers instead of names: set DATASETS.CLASS_NAMES (config.yaml beside the checkpoint has them).")
    return [f"class {i + 1}" for i in range(count)]


class VideoPredictor:
    """A trained model and its tracker, ready for videos.

    Args:
        cfg: a SOLO-Track config; ``MODEL.WEIGHTS`` is the checkpoint.
        model: an already built and loaded model; None builds it and loads the checkpoint.
        class_names: names of the model's classes; None takes the config's.

    Raises:
        ConfigError: MODEL.DEVICE is not there.
        CheckpointError: no weights, or weights that do not fit the config.

    Example::

        predictor = VideoPredictor(load_config("config.yaml", ["MODEL.WEIGHTS", "model_final.pth"]))
        tracks = predictor.track("clip.mp4")
        tracks.save_results("results.json")
    """

    def __init__(self, cfg: CfgNode, model: nn.Module | None = None, class_names: Sequence[str] | None = None) -> None:
        self.cfg = cfg.clone()
        check_device(self.cfg)
        if model is None:
            model = build_model(self.cfg)
            AtomicCheckpointer(model).load_for_inference(self.cfg.MODEL.WEIGHTS)
        self.model = model.eval()
        self.video_tracker = VideoTracker.from_config(self.cfg, self.model).eval()
        self.class_names = list(class_names) if class_names is not None else _class_names(self.cfg)
        self._image_format = self.cfg.INPUT.FORMAT
        self._live_tracker = build_tracker(self.cfg)
        self.reset()

    def collector(self, fps: float | None = None) -> TrackCollector:
        """An empty collector for :meth:`stream`."""
        return TrackCollector(self.video_tracker.make_recorder(), self.class_names, fps)

    def stream(
        self, video: Any, collector: TrackCollector | None = None, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Frame, Instances]]:
        """Yield every frame with its tracked detections (``ID``; -1 belongs to no track); one video at a time.

        Args:
            video: see ``open_frames``; frames are yielded in ``cfg.INPUT.FORMAT``.
            collector: notes everything down on the way, if given.
            stop: asked after every frame, see ``VideoTracker.stream``; True ends the video there.

        Raises:
            FrameError: the video, or one of its frames, cannot be read.
        """
        for frame, instances in self.video_tracker.stream(video, collector, stop):
            if collector is not None:
                collector.add_frame(frame)
            yield frame, instances

    def track(self, video: Any, progress: bool = False) -> VideoTracks:
        """Track a whole video.

        Args:
            video: a video file, a folder, a pattern, image files, a video dict, or (H, W, 3) uint8 RGB arrays; see ``open_frames``.
            progress: show a progress bar.

        Raises:
            FrameError: the video, or one of its frames, cannot be read.
        """
        source = open_frames(video, self._image_format)
        collector = self.collector(source.fps)
        for _ in tqdm(self.stream(source, collector), total=source.length, unit="frame", disable=not progress):
            pass
        return collector.finish()

    def update(self, frame: np.ndarray) -> Instances:
        """Track the next frame of a stream.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            its detections with ``ID``; -1 belongs to no track.

        Raises:
            FrameError: not such an array.
            ConfigError: the config's tracker is an offline one, which needs whole videos.
        """
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise FrameError("A frame must be a (H, W, 3) uint8 array in RGB.")
        image = frame if self._image_format == "RGB" else frame[..., ::-1]
        return self._live_tracker.update(self.video_tracker.detect_image(image))

    def reset(self) -> None:
        """Forget the tracks of :meth:`update`: another stream begins. ``track`` and ``stream`` have a tracker of their own."""
        self.video_tracker.start(self._live_tracker)
