"""From linked detections to the tracks of a video, in YouTube-VIS' result format: METHOD 5.5, 5.6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from solotrack.ops.rle import rle_areas

__all__ = ["FinishedTrack", "TrackRecorder"]


@dataclass
class _Track:
    frames: list[int] = field(default_factory=list)
    rles: list[dict] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class FinishedTrack:
    """One instance through a video: only the frames in which it is present (METHOD 5.5).

    Attributes:
        id: its identity.
        category_id: the data set's category.
        score: of the whole track, 0 to 1.
        rles: frame, from 0 -> RLE of its mask at the video's original size, in order of the frames.
        scores: frame -> score of its detection, 0 to 1.
    """

    id: int
    category_id: int
    score: float
    rles: dict[int, dict]
    scores: dict[int, float]


class TrackRecorder:
    """Collects the detections of one video after the other and turns them into track results.

    Of a detection it keeps the mask's RLE, its score and its class. A detection with an empty mask counts as absent, as does one without a
    track (ID -1).
    """

    def __init__(self, track_score: str = "mean", topk: int = 10, track_category: str = "majority") -> None:
        """
        Args:
            track_score: a track's score is the "mean" or "max" of its detections' scores, or the mean of the largest ``topk``
                ("mean_topk").
            topk: of "mean_topk"; a track with fewer detections takes all.
            track_category: "majority" of the detections' categories, or the category with the largest sum of scores ("score_weighted").
                The smallest category id wins a tie. Classes that stand for the same data set category vote together.
        """
        if track_score not in ("mean", "max", "mean_topk"):
            raise ValueError(f"track_score is {track_score!r}; allowed: 'mean', 'max', 'mean_topk'.")
        if track_category not in ("majority", "score_weighted"):
            raise ValueError(f"track_category is {track_category!r}; allowed: 'majority', 'score_weighted'.")
        self._topk = {"mean": None, "max": 1, "mean_topk": topk}[track_score]
        self._score_weighted = track_category == "score_weighted"
        self._tracks: dict[int, _Track] = {}

    def add(
        self,
        frame_index: int,
        ids: torch.Tensor | Sequence[int],
        rles: Sequence[dict],
        scores: torch.Tensor | Sequence[float],
        classes: torch.Tensor | Sequence[int],
    ) -> None:
        """Add a frame's n detections.

        Args:
            frame_index: position in the video, from 0; frames come in order, frames without detections may be left out.
            ids: (n,) tracks, -1 for none.
            rles: n RLEs {"size": [h, w], "counts": str} at the video's original size.
            scores: (n,).
            classes: (n,) contiguous classes.

        Raises:
            ValueError: lengths differ, or a track would get two masks in one frame or an earlier frame.
        """
        ids, scores, classes = _to_list(ids), _to_list(scores), _to_list(classes)
        if not len(ids) == len(rles) == len(scores) == len(classes):
            raise ValueError(f"Frame {frame_index} has {len(ids)} ids, {len(rles)} masks, {len(scores)} scores and {len(classes)} classes.")
        areas = rle_areas(list(rles)) if rles else ()
        for track_id, rle, score, label, area in zip(ids, rles, scores, classes, areas, strict=True):
            if track_id < 0 or not area:
                continue
            track = self._tracks.setdefault(track_id, _Track())
            if track.frames and track.frames[-1] >= frame_index:
                raise ValueError(
                    f"Track {track_id} already has a mask in frame {track.frames[-1]}; frame {frame_index} cannot add another."
                )
            track.frames.append(frame_index)
            track.rles.append(rle)
            track.scores.append(score)
            track.classes.append(label)

    def finish(self, video_id: int, length: int, class_to_dataset_id: Mapping[int, int] | Sequence[int]) -> list[dict]:
        """The video's tracks; the recorder is empty afterwards, ready for the next video.

        Args:
            video_id: id of the video in its data set.
            length: number of its frames.
            class_to_dataset_id: the data set's category id of each contiguous class.

        Returns:
            for each track with at least one mask, by ID: {"video_id", "category_id", "score", "segmentations": ``length`` entries, an
            RLE or None}.

        Raises:
            ValueError: a detection lies outside the video or has a class without a category.
        """
        return [
            {
                "video_id": video_id,
                "category_id": track.category_id,
                "score": track.score,
                "segmentations": [track.rles.get(frame) for frame in range(length)],
            }
            for track in self.finish_tracks(length, class_to_dataset_id)
        ]

    def finish_tracks(self, length: int, class_to_dataset_id: Mapping[int, int] | Sequence[int]) -> list[FinishedTrack]:
        """As :meth:`finish`, but what is kept grows with the masks alone and not with tracks times frames.

        Args:
            length: number of the video's frames.
            class_to_dataset_id: the data set's category id of each contiguous class.

        Returns:
            the tracks with at least one mask, by ID.

        Raises:
            ValueError: a detection lies outside the video or has a class without a category.
        """
        tracks, self._tracks = self._tracks, {}
        finished = []
        for track_id, track in sorted(tracks.items()):
            if not 0 <= track.frames[0] <= track.frames[-1] < length:
                raise ValueError(f"Track {track_id} covers frames {track.frames[0]} to {track.frames[-1]}; the video has {length} frames.")
            category_id = self._category(track, class_to_dataset_id)
            score = float(np.mean(sorted(track.scores, reverse=True)[: self._topk]))
            rles, scores = (dict(zip(track.frames, values, strict=True)) for values in (track.rles, track.scores))
            finished.append(FinishedTrack(track_id, category_id, score, rles, scores))
        return finished

    def _category(self, track: _Track, class_to_dataset_id: Mapping[int, int] | Sequence[int]) -> int:
        try:
            votes = np.array([class_to_dataset_id[label] for label in track.classes])
        except (KeyError, IndexError):
            raise ValueError(
                f"A track has detections of the classes {sorted(set(track.classes))}; not all of them have a category in the data set. "
                "Give the tracker the classes that have one (class_ids)."
            ) from None
        categories, inverse = np.unique(votes, return_inverse=True)  # ascending, so that argmax gives the smallest of equals
        weights = np.array(track.scores) if self._score_weighted else None
        return int(categories[np.bincount(inverse, weights=weights).argmax()])


def _to_list(values: torch.Tensor | Sequence) -> list:
    return values.tolist() if hasattr(values, "tolist") else list(values)
