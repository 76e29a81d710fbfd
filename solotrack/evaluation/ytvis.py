"""The YouTube-VIS metric: average precision and recall of mask tubes (METHOD 9.1).

Follows youtubevos/cocoapi's ``ytvoseval`` to the last digit: COCO's metric with videos in the place of images, tubes in the place of masks.
Knows plain dicts and RLEs only. The time goes to one ``pycocotools.mask.iou`` call for each (video, category, frame).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from tabulate import tabulate

from solotrack.evaluation.ytvis_format import GroundTruth, Track, YTVISFormatError, read_ground_truth, read_predictions
from solotrack.ops.rle import has_negative_runs

__all__ = ["YTVISResult", "evaluate_ytvis", "score_tracks", "scored_videos", "selected_ids", "tube_ious", "videos_with_categories"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MAX_TRACKS = (1, 10, 100)  # tracks scored of each video and category
AREA_RANGES = np.array([[0, 1e5**2], [0, 128**2], [128**2, 256**2], [256**2, 1e5**2]])  # pixels, ends included: all, small, medium, large
_FRAMES_AT_ONCE = 5  # compared before asking again which tracks can still match
_SIZES = ("", "s", "m", "l")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class YTVISResult:
    """Scores as fractions, -1 where there is nothing to score.

    Attributes:
        stats: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl.
        per_category: by name, in the order of the ids: AP, AP50, AP75, AR1, AR10 and ``tracks``, the number of ground-truth tracks
            (crowds not counted).
    """

    stats: dict[str, float]
    per_category: dict[str, dict[str, float]] = field(default_factory=dict)

    def summary(self) -> str:
        """Two tables in percent, the twelve numbers and the categories that occur."""
        columns = ("AP", "AP50", "AP75", "AR1", "AR10")
        rows = [
            [name, *(_percent(row[c]) for c in columns), str(row["tracks"])] for name, row in self.per_category.items() if row["tracks"] > 0
        ]
        overall = _table(list(self.stats), [[_percent(value) for value in self.stats.values()]])
        return f"{overall}\n\n{_table(['category', *columns, 'tracks'], rows)}"


def evaluate_ytvis(
    ground_truth: dict[str, Any],
    predictions: list[dict[str, Any]],
    category_ids: Iterable[int] | None = None,
    video_ids: Iterable[int] | None = None,
    *,
    strict: bool = False,
    sources: tuple[str, str] = ("ground truth", "predictions"),
) -> YTVISResult:
    """Score predicted tracks against a YouTube-VIS annotation file.

    Args:
        ground_truth: parsed annotation json.
        predictions: ``[{"video_id", "category_id", "score", "segmentations": [compressed RLE or None] * length}, ...]``; may be empty.
        category_ids: categories to score, all by default. Tracks of other categories are dropped.
        video_ids: videos to score, all by default.
        strict: tracks that are not as long as their video are an error; otherwise they are scored on the frames both have, with a warning.
        sources: what to call the two in messages, their paths for instance.

    Raises:
        YTVISFormatError: lists every fault of the ground truth or of the predictions.
        ValueError: an id to score is not in the annotation file.
    """
    truth = read_ground_truth(ground_truth, sources[0])
    tracks, warning = read_predictions(predictions, truth, sources[1], strict)
    if warning:
        logger.warning("%s", warning)
    return score_tracks(truth, tracks, category_ids, video_ids)


def videos_with_categories(ground_truth: GroundTruth, category_ids: Iterable[int]) -> list[int]:
    """Ids of the videos with a ground-truth track of one of the categories, ascending (METHOD 8.2, mode "any")."""
    wanted = set(category_ids)
    return sorted({track.video_id for track in ground_truth.tracks if track.category_id in wanted})


def scored_videos(ground_truth: GroundTruth, category_ids: Iterable[int] | None, subset: str) -> list[int]:
    """Ids of the videos to score, ascending (METHOD 8.2).

    Args:
        ground_truth: of all videos.
        category_ids: categories to score; None: all.
        subset: of videos, when only some categories are scored: "any" video that shows one of them, or "all".
    """
    if category_ids is not None and subset == "any":
        return videos_with_categories(ground_truth, category_ids)
    return sorted(ground_truth.videos)


def score_tracks(
    ground_truth: GroundTruth,
    tracks: Iterable[Track],
    category_ids: Iterable[int] | None = None,
    video_ids: Iterable[int] | None = None,
) -> YTVISResult:
    """Score checked tracks; the arguments are those of :func:`evaluate_ytvis`."""
    categories = selected_ids(category_ids, ground_truth.categories, "category")
    videos = selected_ids(video_ids, ground_truth.videos, "video")
    truths, guesses = _by_category_and_video(ground_truth.tracks), _by_category_and_video(tracks)
    # (thresholds, recall points, categories, areas), (thresholds, categories, areas, track limits)
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), len(categories), len(AREA_RANGES)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), len(categories), len(AREA_RANGES), len(MAX_TRACKS)), -1.0)
    counts = []
    for k, category in enumerate(categories):
        gts, dts = truths.get(category, {}), guesses.get(category, {})
        groups = [_match_video(dts.get(video, []), gts.get(video, [])) for video in videos if video in gts or video in dts]
        counts.append(sum(not track.crowd for video in videos for track in gts.get(video, [])))
        if groups:
            _accumulate(groups, precision[:, :, k], recall[:, k])
    names = _unique_names(categories, ground_truth.categories)
    table = {
        name: {
            "AP": _mean(precision[:, :, k, 0]),
            "AP50": _mean(precision[0, :, k, 0]),
            "AP75": _mean(precision[5, :, k, 0]),
            "AR1": _mean(recall[:, k, 0, 0]),
            "AR10": _mean(recall[:, k, 0, 1]),
            "tracks": counts[k],
        }
        for k, name in enumerate(names)
    }
    stats = {"AP": _mean(precision[..., 0]), "AP50": _mean(precision[0, ..., 0]), "AP75": _mean(precision[5, ..., 0])}
    stats |= {f"AP{size}": _mean(precision[..., a]) for a, size in enumerate(_SIZES) if size}
    stats |= {f"AR{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(MAX_TRACKS)}
    stats |= {f"AR{size}": _mean(recall[:, :, a, -1]) for a, size in enumerate(_SIZES) if size}
    return YTVISResult(stats, table)


def tube_ious(dts: Sequence[Track], gts: Sequence[Track], needed: float = 0.0) -> np.ndarray:
    """IoU of tubes: the sum of intersections over the sum of unions, frame by frame, as far as the shorter of the two goes.

    Args:
        dts, gts: D and G tracks of one video.
        needed: IoUs below it are of no use and come as 0. Masks of pairs that cannot reach it any more are not compared.

    Returns:
        (D, G) float64; 0 for an empty union.

    Raises:
        YTVISFormatError: a mask has runs that pycocotools could not compare.
    """
    frames = min(max(len(t.rles) for t in dts), max(len(t.rles) for t in gts))
    dt_area, dt_has = _padded_areas(dts, frames)
    gt_area, gt_has = _padded_areas(gts, frames)
    both = dt_has[:, None] & gt_has  # (D, G, T)
    smaller = np.minimum(dt_area[:, None], gt_area)  # 0 where either is absent
    total = ((dt_area[:, None] + gt_area) * both).sum(-1)  # (D, G)
    # An intersection is at most the smaller area. Frame by frame, what it is takes the place of what it could be.
    shared = smaller.sum(-1)
    for begin in range(0, frames, _FRAMES_AT_ONCE):
        able = _reach(shared, total, needed)
        rows, columns = np.flatnonzero(able.any(1)), np.flatnonzero(able.any(0))
        if not len(rows):
            break
        here = slice(begin, begin + _FRAMES_AT_ONCE)
        found = _intersections([dts[i] for i in rows], [gts[j] for j in columns], dt_area[rows, here], gt_area[columns, here], begin)
        shared[np.ix_(rows, columns)] -= smaller[rows][:, columns, here].sum(-1) - found
    return np.where(_reach(shared, total, needed), shared / np.maximum(total - shared, 1), 0.0)


def _reach(shared: np.ndarray, total: np.ndarray, needed: float) -> np.ndarray:
    """Whether shared pixels, of the sum of both areas, are enough for an IoU."""
    return (shared > 0) & (shared >= needed * (total - shared))


def _intersections(dts: list[Track], gts: list[Track], dt_area: np.ndarray, gt_area: np.ndarray, begin: int) -> np.ndarray:
    """(D, G) pixels two tubes share in some frames from ``begin`` on, from their areas there (D, F), (G, F)."""
    ious = np.zeros((dt_area.shape[1], len(dts), len(gts)))
    nowhere = _empty_mask(dts[0], gts[0])
    plain = [0] * len(gts)  # crowds are compared as any other track
    for f in np.flatnonzero(dt_area.any(0) & gt_area.any(0)).tolist():
        masks = [_mask_at(d, begin + f) for d in dts]
        for track, rle in zip(dts, masks, strict=True):
            if rle and has_negative_runs(rle["counts"]):
                raise YTVISFormatError(f"{track.name}: segmentations[{begin + f}]: broken RLE: its counts hold a negative run")
        ious[f] = coco_mask.iou([rle or nowhere for rle in masks], [_mask_at(g, begin + f) or nowhere for g in gts], plain)
    # iou = shared / (sum - shared) in whole numbers, so rounding gives back the exact number of shared pixels
    area = dt_area.T[:, :, None] + gt_area.T[:, None, :]
    return np.rint(ious * area / (1 + ious)).astype(np.int64).sum(0)


def _mask_at(track: Track, frame: int) -> dict[str, Any] | None:
    return track.rles[frame] if frame < len(track.rles) else None


def _empty_mask(*tracks: Track) -> dict[str, Any]:
    height, width = next(rle["size"] for track in tracks for rle in track.rles if rle)
    return coco_mask.frPyObjects({"size": [height, width], "counts": [height * width]}, height, width)


def _padded_areas(tracks: Sequence[Track], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, T) int64 areas, 0 past a track's end, and (n, T) bool, whether the track's list reaches the frame."""
    areas = np.zeros((len(tracks), frames), np.int64)
    for row, track in zip(areas, tracks, strict=True):
        row[: len(track.areas)] = track.areas[:frames]
    lengths = np.array([len(track.areas) for track in tracks])
    return areas, np.arange(frames) < lengths[:, None]


@dataclass(frozen=True, slots=True)
class _Matches:
    """The outcome for a video and category; A area ranges, T thresholds, D tracks by falling score."""

    scores: np.ndarray  # (D,)
    matched: np.ndarray  # (A, T, D) bool
    ignored: np.ndarray  # (A, T, D) bool, neither right nor wrong
    to_find: np.ndarray  # (A,) ground truths that count


def _match_video(dts: list[Track], gts: list[Track]) -> _Matches:
    order = np.argsort([-t.score for t in dts], kind="mergesort")[: MAX_TRACKS[-1]]
    dts = [dts[i] for i in order]
    gt_ignored = np.array([t.crowd for t in gts], bool) | _out_of_range(gts)
    matched, ignored = _match(dts, gts, gt_ignored)
    ignored |= ~matched & _out_of_range(dts)[:, None]
    return _Matches(np.array([t.score for t in dts], np.float64), matched, ignored, (~gt_ignored).sum(1))


def _out_of_range(tracks: list[Track]) -> np.ndarray:
    """(A, n) bool"""
    area = np.array([t.mean_area for t in tracks], np.float64)
    return (area < AREA_RANGES[:, :1]) | (area > AREA_RANGES[:, 1:])


def _match(dts: list[Track], gts: list[Track], gt_ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give each track, best score first, the free ground truth it overlaps most.

    Ground truths that count come before ignored ones, whatever their IoU; the later in the file wins a tie; crowds stay free.
    All thresholds and area ranges go side by side.

    Returns:
        matched, ignored: (A, T, D) bool; ignored where the ground truth is.
    """
    shape = (len(AREA_RANGES), len(IOU_THRESHOLDS), len(dts))
    matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    if not dts or not gts:
        return matched, ignored
    ious = tube_ious(dts, gts, needed=IOU_THRESHOLDS[0])
    enough = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]  # (T, 1)
    # A number for each pair that is larger for a better partner: place by IoU, then the file's order; plus G where it counts
    rank = np.empty(ious.shape, np.int64)
    np.put_along_axis(rank, np.argsort(ious, axis=1, kind="mergesort"), np.arange(len(gts))[None], axis=1)
    counts = (~gt_ignored)[:, None] * len(gts)  # (A, 1, G)
    crowd = np.array([t.crowd for t in gts], bool)
    # The official code marks a match by the ground truth's id, so one with id 0 is used up but reads as no match
    readable = np.array([t.id != 0 for t in gts])
    free = np.ones((*shape[:2], len(gts)), bool)
    for i in np.flatnonzero(ious.max(axis=1) >= enough[0]).tolist():
        worth = np.where(free & (ious[i] >= enough), rank[i] + counts, -1)  # (A, T, G)
        best = worth.argmax(axis=-1)  # (A, T)
        found = np.take_along_axis(worth, best[..., None], axis=-1)[..., 0] >= 0
        a, t = np.nonzero(found)
        g = best[a, t]
        free[a, t, g] = crowd[g]
        matched[a, t, i] = readable[g]
        ignored[a, t, i] = gt_ignored[a, g]
    return matched, ignored


def _accumulate(groups: list[_Matches], precision: np.ndarray, recall: np.ndarray) -> None:
    """Precision (T, R, A) and recall (T, A, limits) of a category from its videos, written in place."""
    to_find = np.sum([g.to_find for g in groups], axis=0)
    scores = np.concatenate([g.scores for g in groups])
    place = np.concatenate([np.arange(len(g.scores)) for g in groups])
    order = np.argsort(-scores, kind="mergesort")
    place = place[order]
    matched = np.concatenate([g.matched for g in groups], axis=2)[:, :, order]
    counted = ~np.concatenate([g.ignored for g in groups], axis=2)[:, :, order]
    right, wrong = matched & counted, ~matched & counted  # (A, T, N)
    hits, misses = right.cumsum(-1), wrong.cumsum(-1)
    for a in np.flatnonzero(to_find):
        for m, limit in enumerate(MAX_TRACKS):
            recall[:, a, m] = right[a][:, place < limit].sum(-1) / to_find[a]
        share = hits[a] / (hits[a] + misses[a] + np.spacing(1))  # (T, N)
        best_from_here = np.maximum.accumulate(share[:, ::-1], axis=1)[:, ::-1]
        for t in range(len(IOU_THRESHOLDS)):
            at = np.searchsorted(hits[a, t] / to_find[a], RECALL_POINTS, side="left")
            reached = at < len(order)
            precision[t, :, a] = 0
            precision[t, reached, a] = best_from_here[t, at[reached]]


def _mean(values: np.ndarray) -> float:
    """Of what is defined; -1 where nothing is."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _by_category_and_video(tracks: Iterable[Track]) -> dict[int, dict[int, list[Track]]]:
    groups: dict[int, dict[int, list[Track]]] = defaultdict(lambda: defaultdict(list))
    for track in tracks:
        groups[track.category_id][track.video_id].append(track)
    return groups


def selected_ids(ids: Iterable[int] | None, known: dict[int, Any], what: str) -> list[int]:
    """Ids to score, ascending; None: all that are known.

    Raises:
        YTVISFormatError: one is not known, or none is left.
    """
    if ids is None:
        return sorted(known)
    chosen = set(ids)
    unknown = sorted(chosen - known.keys())
    if unknown:
        raise YTVISFormatError(f"{what} ids {unknown[:10]} are not in the annotation file")
    if not chosen:
        raise YTVISFormatError(f"no {what} is left to score")
    return sorted(chosen)


def _unique_names(ids: list[int], names: dict[int, str]) -> list[str]:
    chosen = [names[i] for i in ids]
    return [f"{name} ({i})" if chosen.count(name) > 1 else name for i, name in zip(ids, chosen, strict=True)]


def _table(headers: list[str], rows: list[list[str]]) -> str:
    align = ["left" if header == "category" else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)


def _percent(value: float) -> str:
    return "-" if value < 0 else f"{100 * value:.2f}"
