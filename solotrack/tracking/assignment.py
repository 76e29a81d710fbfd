"""Which detection continues which track, given the value of every pair: METHOD 5.3.

Host side and numpy: the matrices are small, and an assignment is a decision rather than a tensor operation.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["DROPPED", "NEW", "assign"]

NEW = -1  # the detection starts a track
DROPPED = -2  # the detection belongs to no track


def assign(values: np.ndarray, null: np.ndarray | float, method: str = "greedy", loser: str = "drop") -> np.ndarray:
    """Link detections to tracks, at most one detection for a track and one track for a detection.

    A detection may take a track only where the pair's value is at least the detection's null value.

    * ``greedy``: pairs are taken in the order of their value, best first; of equal pairs that of the earlier detection (the one with the
      higher score) goes first, then that of the earlier row (the older track). So every detection asks for its best track, the best one
      gets it, and a loser goes on to its next best.
    * ``hungarian``: the assignment with the largest sum of values, where a detection without a track adds its null value. Of equal sums
      the one with more links is taken.

    A detection left without a track is NEW when no track was worth its null value ("all similarity scores are below the threshold",
    paper §3.3). Otherwise it lost every track it resembles to better detections: it is not unlike all tracks, most often it is a second
    detection of the winner's object. ``loser`` "drop" drops it, as MaskTrack R-CNN does (METHOD 5.4); "new" starts a track.

    Args:
        values: (n, K), detections by score descending against tracks; -inf for a pair that must not be linked.
        null: (n,) or one number, the value of leaving a detection unlinked.
        method: "greedy" or "hungarian".
        loser: "drop" or "new".

    Returns:
        (n,) int64: the row of the track, or NEW, or DROPPED.
    """
    values = np.asarray(values, dtype=np.float64)
    null = np.broadcast_to(np.asarray(null, dtype=np.float64), values.shape[:1])
    match = np.full(len(values), NEW, dtype=np.int64)
    eligible = values >= null[:, None]
    if not eligible.any():
        return match
    if method == "greedy":
        rows, columns = _greedy(np.where(eligible, values, -np.inf))
    else:
        rows, columns = _hungarian(values - null[:, None], eligible)
    match[rows] = columns
    if loser == "drop":
        match[(match == NEW) & eligible.any(axis=1)] = DROPPED
    return match


def _greedy(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in descending order of value; -inf is never linked.

    Every round links all pairs in which each side is the other's best: no pair of either comes earlier in the order, so it is the
    order's own choice. The first pair of the order is always among them, hence at most min(n, K) rounds, and few on real matrices.
    """
    values = values.copy()
    rows, columns = [], []
    while True:
        best_column = values.argmax(axis=1)  # the first of equals
        best_row = values.argmax(axis=0)
        mutual = np.flatnonzero(best_row[best_column] == np.arange(len(values)))
        mutual = mutual[values[mutual, best_column[mutual]] > -np.inf]
        if not len(mutual):
            break
        rows.append(mutual)
        columns.append(best_column[mutual])
        values[mutual] = -np.inf
        values[:, best_column[mutual]] = -np.inf
    return np.concatenate(rows), np.concatenate(columns)


def _hungarian(gain: np.ndarray, eligible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The links with the largest total gain over leaving detections unlinked.

    Staying unlinked gains 0, so a pair that gains less is the same as none: with those set to 0 the full assignment of the (n, K) matrix
    solves the problem with a null column for every detection. The small constant makes a link that gains exactly 0 better than no link;
    values come from float32, whose differences are larger.
    """
    rows, columns = linear_sum_assignment(np.where(eligible, gain + 1e-9, 0.0), maximize=True)
    linked = eligible[rows, columns]
    return rows[linked], columns[linked]
