"""Identity metrics of boxes: IDF1, HOTA and MOTA, by the TrackEval library.

Truth and predictions are YouTube-VIS files; the box of an object in a frame is the tight box of its mask. Boxes correspond from an IoU of
0.5 on in IDF1 and MOTA; HOTA is the mean over IoUs of 0.05 to 0.95.

IDF1: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking" (2016). HOTA: Luiten et al., "HOTA: A
Higher Order Metric for Evaluating Multi-Object Tracking" (IJCV 2021). MOTA: Bernardin and Stiefelhagen (2008).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from solotrack.errors import SoloTrackError
from solotrack.evaluation.boxes import boxes_by_frame
from solotrack.evaluation.ytvis import selected_ids
from solotrack.evaluation.ytvis_format import GroundTruth, Track, Video, YTVISFormatError
from solotrack.ops.masks import box_iou

__all__ = [
    "SCORES",
    "Bootstrap",
    "MOTResult",
    "MissingLibraryError",
    "block_frames",
    "check_library",
    "paired_difference",
    "score_identities",
]

SCORES = ("IDF1", "IDP", "IDR", "HOTA", "DetA", "AssA", "MOTA")
COUNTS = ("IDTP", "IDFP", "IDFN", "TP", "FP", "FN", "IDSW", "frames", "objects", "tracks")


class MissingLibraryError(SoloTrackError, ImportError):
    """A library that only some commands need is not installed."""


@dataclass(frozen=True)
class Bootstrap:
    """Moving blocks of frames, drawn with replacement from each video until its length is reached (Kunsch, 1989).

    Attributes:
        resamples: how many; an interval is read from the quantiles of their scores.
        block: frames of a block; 0 takes the square root of the video's length, rounded. Frames near in time show the same people, so
            single frames are no independent draws.
        seed: of the blocks. Two trackers of the same videos see the same blocks, so that their scores can be compared resample by resample.
        level: probability an interval is to cover.
    """

    resamples: int = 200
    block: int = 0
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class MOTResult:
    """Identity metrics over all videos and categories together: each box counts once.

    Attributes:
        scores: IDF1, IDP, IDR, HOTA, DetA, AssA and MOTA as fractions (MOTA may be negative).
        counts: IDTP, IDFP, IDFN, the TP, FP and FN of MOTA, IDSW (identity switches), frames, objects (true tracks) and tracks (predicted).
        intervals: score -> (low, high); empty without a bootstrap. The interval says how the score of *these scenes and objects* varies
            with the stretches of time that happen to be in the videos. It knows nothing of other scenes, cameras or people; of a single
            video with a dozen people it is the least uncertainty there is. It is the spread of the resampled scores put around the score:
            as identities are assigned anew each time, resampled scores are higher on average.
        resampled: score -> (resamples,), what the intervals are read from. Seams between blocks would count as identity switches, so MOTA
            has none.
    """

    scores: dict[str, float]
    counts: dict[str, int]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    resampled: dict[str, np.ndarray] = field(default_factory=dict)

    def summary(self) -> str:
        """Two tables: scores in percent with their intervals, and counts."""
        rows = [[f"{100 * value:.1f}" for value in self.scores.values()]]
        if self.intervals:
            rows.append([f"{100 * i[0]:.1f} to {100 * i[1]:.1f}" if (i := self.intervals.get(name)) else "" for name in self.scores])
        tables = ((list(self.scores), rows), (list(self.counts), [[str(value) for value in self.counts.values()]]))
        return "\n\n".join(tabulate(r, headers=h, tablefmt="github", disable_numparse=True, stralign="right") for h, r in tables)


@dataclass(frozen=True)
class _Sequence:
    """The objects (G) and tracks (K) of one category of a video; ids of a frame index them."""

    truth_ids: list[np.ndarray]  # of each frame (g,)
    track_ids: list[np.ndarray]  # (k,)
    ious: list[np.ndarray]  # (g, k)
    objects: int
    tracks: int

    def frames(self, order: Sequence[int] | None = None) -> dict[str, Any]:
        """What TrackEval's metrics take, of some frames in any order, with repetition; all by default."""
        order = range(len(self.ious)) if order is None else order
        truth_ids, track_ids = ([ids[t] for t in order] for ids in (self.truth_ids, self.track_ids))
        return {
            "gt_ids": truth_ids,
            "tracker_ids": track_ids,
            "similarity_scores": [self.ious[t] for t in order],
            "num_gt_ids": self.objects,
            "num_tracker_ids": self.tracks,
            "num_gt_dets": sum(map(len, truth_ids)),
            "num_tracker_dets": sum(map(len, track_ids)),
            "num_timesteps": len(truth_ids),
        }


def score_identities(
    ground_truth: GroundTruth,
    tracks: Iterable[Track],
    score_threshold: float = 0.0,
    bootstrap: Bootstrap | None = None,
    category_ids: Iterable[int] | None = None,
    video_ids: Iterable[int] | None = None,
) -> MOTResult:
    """Score checked tracks (``ytvis_format``) by the boxes of their masks.

    Unlike average precision these metrics take tracks as they are, without a ranking, so weak ones count as much as sure ones. The
    threshold has to be chosen without the truth that is scored: by the tracker's own detection threshold (then 0 here), or on other data.

    Args:
        ground_truth: crowds are left out; detections there count as wrong.
        tracks: predicted; those of another category than an object's do not correspond to it.
        score_threshold: tracks with a lower score are left out.
        bootstrap: for intervals; None for none.
        category_ids: categories to score, all by default. Objects and tracks of others are left out.
        video_ids: videos to score, all by default.

    Raises:
        MissingLibraryError: TrackEval is not installed.
        YTVISFormatError: a mask has runs that make no mask, there is no object, or no such category or video.
    """
    metrics = _metrics()
    scored = set(selected_ids(category_ids, ground_truth.categories, "category"))
    videos = {i: ground_truth.videos[i] for i in selected_ids(video_ids, ground_truth.videos, "video")}

    def counts_here(track: Track) -> bool:
        return track.category_id in scored and track.video_id in videos

    objects = [track for track in ground_truth.tracks if not track.crowd and counts_here(track)]
    if not objects:
        raise YTVISFormatError("the ground truth has no object to score, crowds left out, so no identity can be scored")
    tracks = [track for track in tracks if track.score >= score_threshold and counts_here(track)]
    sequences = _sequences(videos, objects, tracks)
    scores, counts = _measure(metrics, [sequence.frames() for sequence, _ in sequences])
    counts |= {
        "frames": sum(video.length for video in videos.values()),
        "objects": sum(sequence.objects for sequence, _ in sequences),
        "tracks": sum(sequence.tracks for sequence, _ in sequences),
    }
    counts = {name: counts[name] for name in COUNTS}
    if bootstrap is None:
        return MOTResult(scores, counts)
    rng = np.random.default_rng(bootstrap.seed)
    drawn = []
    for _ in range(bootstrap.resamples):
        orders = {i: block_frames(videos[i].length, bootstrap.block, rng) for i in videos}
        drawn.append(_measure(metrics[:2], [sequence.frames(orders[video]) for sequence, video in sequences])[0])
    resampled = {name: np.array([draw[name] for draw in drawn]) for name in SCORES if name != "MOTA"}
    intervals = {name: _interval(scores[name], values, bootstrap.level) for name, values in resampled.items()}
    return MOTResult(scores, counts, intervals, resampled)


def paired_difference(result: MOTResult, other: MOTResult, score: str, level: float = 0.95) -> tuple[float, float, float]:
    """How much better a tracker is than another one of the same videos, and the interval of it; both bootstrapped alike.

    Returns:
        difference, low, high.
    """
    difference = result.scores[score] - other.scores[score]
    return difference, *_interval(difference, result.resampled[score] - other.resampled[score], level)


def block_frames(length: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """(length,) frames of a resampled video: blocks of ``block`` consecutive frames one after the other, the last one cut."""
    block = min(block or round(length**0.5), length)
    if not length:
        return np.empty(0, np.int64)
    starts = rng.integers(0, length - block + 1, -(-length // block))
    return (starts[:, None] + np.arange(block)).reshape(-1)[:length]


def _interval(score: float, resampled: np.ndarray, level: float) -> tuple[float, float]:
    low, high = score + np.quantile(resampled - resampled.mean(), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def check_library() -> None:
    """Say that TrackEval is missing before videos are tracked, not after.

    Raises:
        MissingLibraryError: it is not installed.
    """
    _metrics()


def _metrics() -> tuple[Any, ...]:
    """Identity, HOTA, CLEAR."""
    try:
        from trackeval.metrics import CLEAR, HOTA, Identity
    except ImportError:
        raise MissingLibraryError(
            "Identity metrics need the library trackeval: pip install --no-deps -r requirements/trackeval.txt, or pip install trackeval."
        ) from None
    quiet = {"PRINT_CONFIG": False}
    return Identity(quiet), HOTA(), CLEAR(quiet)


def _measure(metrics: Sequence[Any], sequences: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, int]]:
    """Scores and counts of all sequences together, as far as the metrics go."""
    merged: dict[str, Any] = {}
    with np.errstate(invalid="ignore"):  # HOTA divides by the number of boxes of every id, also of those a resample left out
        for metric in metrics:
            merged |= metric.combine_sequences({i: metric.eval_sequence(frames) for i, frames in enumerate(sequences)})
    scores = {name: float(np.mean(merged[name])) for name in SCORES if name in merged}
    names = {"TP": "CLR_TP", "FP": "CLR_FP", "FN": "CLR_FN"}
    return scores, {name: int(merged[key]) for name in COUNTS if (key := names.get(name, name)) in merged}


def _sequences(videos: Mapping[int, Video], objects: list[Track], tracks: list[Track]) -> list[tuple[_Sequence, int]]:
    """One for each video and category that has a track of either kind, with the video's id."""
    groups: dict[tuple[int, int], tuple[list[Track], list[Track]]] = {}
    for side, kind in enumerate((objects, tracks)):
        for track in kind:
            groups.setdefault((track.video_id, track.category_id), ([], []))[side].append(track)
    return [(_sequence(*groups[key], videos[key[0]].length), key[0]) for key in sorted(groups)]


def _sequence(truth: list[Track], tracks: list[Track], length: int) -> _Sequence:
    (truth_ids, truth_boxes), (track_ids, track_boxes) = _by_frame(truth, length), _by_frame(tracks, length)
    # float64: an IoU of 7 / 20 is to count at TrackEval's threshold of 0.35
    ious = [box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy() for a, b in zip(truth_boxes, track_boxes, strict=True)]
    return _Sequence(truth_ids, track_ids, ious, len(truth), len(tracks))


def _by_frame(tracks: list[Track], length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each frame the indices (n,) of the tracks seen in it, and their boxes (n, 4); entries past the video's end are left out."""
    ids: list[list[int]] = [[] for _ in range(length)]
    boxes: list[list[np.ndarray]] = [[] for _ in range(length)]
    for index, track in enumerate(tracks):
        for frame, box in boxes_by_frame(track).items():
            if frame < length:
                ids[frame].append(index)
                boxes[frame].append(box)
    return [np.array(i, np.int64) for i in ids], [np.array(b, np.float64).reshape(-1, 4) for b in boxes]
