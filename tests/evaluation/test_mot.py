from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from solotrack.evaluation.mot import Bootstrap, MissingLibraryError, block_frames, check_library, paired_difference, score_identities
from solotrack.evaluation.ytvis_format import GroundTruth, Track, Video, YTVISFormatError
from solotrack.ops.rle import decode_rle, encode_masks

H, W = 20, 30
Boxes = list[tuple[int, int, int, int] | None]  # of each frame x, y, width, height


def track(boxes: Boxes, video: int = 1, category: int = 1, score: float = 1.0, crowd: bool = False) -> Track:
    masks = np.zeros((len(boxes), H, W), bool)
    for mask, box in zip(masks, boxes, strict=True):
        if box:
            mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = True
    rles = [rle if mask.any() else None for rle, mask in zip(encode_masks(masks), masks, strict=True)]
    return Track(0, "track", video, category, score, crowd, 1.0, rles, masks.sum((1, 2)))


def moving(x: int, y: int, step: int, frames: int) -> Boxes:
    return [(x + step * t, y, 4, 6) for t in range(frames)]


def truth_of(tracks: list[Track], frames: int, videos: tuple[int, ...] = (1,)) -> GroundTruth:
    return GroundTruth({v: Video(H, W, frames) for v in videos}, {1: "person", 2: "dog"}, tracks)


def random_case(seed: int, frames: int = 12) -> tuple[GroundTruth, list[Track]]:
    """Objects that walk, and tracks that follow them with wrong places, gaps and swaps."""
    rng = np.random.default_rng(seed)
    objects = [moving(int(rng.integers(0, 8)), int(y), int(rng.integers(0, 2)), frames) for y in (0, 4, 8, 12)]
    objects = [[box if rng.random() < 0.8 else None for box in boxes] for boxes in objects]
    tracks: list[Boxes] = [[None] * frames for _ in range(6)]
    for t, boxes in enumerate(zip(*objects, strict=True)):
        places = rng.permutation(6) if rng.random() < 0.3 else np.arange(6)
        for place, box in zip(places, [*boxes, (20, 10, 5, 5)], strict=False):
            if box and rng.random() < 0.85:
                tracks[place][t] = (box[0] + int(rng.integers(0, 3)), box[1] + int(rng.integers(0, 3)), box[2], box[3])
    tracks = [boxes for boxes in tracks if any(boxes)]
    return truth_of([track(boxes) for boxes in objects], frames), [track(boxes, score=0.5) for boxes in tracks]


def decoded(track: Track) -> list[set[tuple[int, int]]]:
    pixels = [decode_rle(rle, H, W) if rle else np.zeros((H, W)) for rle in track.rles]
    return [set(zip(*np.nonzero(p), strict=True)) for p in pixels]


def iou(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def slow_idf1(truth: list[Track], tracks: list[Track]) -> tuple[int, int, int]:
    """IDTP, IDFP, IDFN by trying every way to pair objects with tracks (Ristani et al., section 2): the largest IDTP."""
    objects, guesses = [decoded(t) for t in truth], [decoded(t) for t in tracks]
    hits = np.array([[sum(iou(a, b) >= 0.5 for a, b in zip(o, g, strict=True)) for g in guesses] for o in objects])
    padded = np.pad(hits, ((0, 0), (0, len(objects))))  # an object may go without a track
    best = max(sum(padded[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(padded.shape[1]), len(objects)))
    shown = [sum(map(bool, frames)) for frames in objects], [sum(map(bool, frames)) for frames in guesses]
    return best, sum(shown[1]) - best, sum(shown[0]) - best


def slow_mota(truth: list[Track], tracks: list[Track]) -> tuple[int, int, int, int]:
    """TP, FP, FN, switches (Bernardin and Stiefelhagen): keep the last frame's pairs, then match the rest by IoU."""
    objects, guesses = [decoded(t) for t in truth], [decoded(t) for t in tracks]
    last: dict[int, int] = {}
    now: dict[int, int] = {}
    tp = fp = fn = switches = 0
    for t in range(len(objects[0])):
        o, g = ([i for i, frames in enumerate(side) if frames[t]] for side in (objects, guesses))
        worth = np.zeros((len(o), len(g)))
        for (a, i), (b, j) in itertools.product(enumerate(o), enumerate(g)):
            overlap = iou(objects[i][t], guesses[j][t])
            worth[a, b] = (overlap + 1000 * (now.get(i) == j)) if overlap >= 0.5 else 0
        pairs = [(o[a], g[b]) for a, b in zip(*linear_sum_assignment(-worth), strict=True) if worth[a, b] > 0]
        if o and g:
            now = dict(pairs)
        switches += sum(last.get(i, j) != j for i, j in pairs)
        last |= dict(pairs)
        tp, fp, fn = tp + len(pairs), fp + len(g) - len(pairs), fn + len(o) - len(pairs)
    return tp, fp, fn, switches


@pytest.mark.parametrize("seed", range(4))
def test_against_slow_references(seed: int) -> None:
    truth, tracks = random_case(seed)
    result = score_identities(truth, tracks)
    idtp, idfp, idfn = slow_idf1(truth.tracks, tracks)
    assert [result.counts[name] for name in ("IDTP", "IDFP", "IDFN")] == [idtp, idfp, idfn]
    assert result.scores["IDF1"] == pytest.approx(2 * idtp / (2 * idtp + idfp + idfn))
    assert result.scores["IDP"] == pytest.approx(idtp / (idtp + idfp))
    assert result.scores["IDR"] == pytest.approx(idtp / (idtp + idfn))
    tp, fp, fn, switches = slow_mota(truth.tracks, tracks)
    assert [result.counts[name] for name in ("TP", "FP", "FN", "IDSW")] == [tp, fp, fn, switches]
    assert switches > 0
    assert result.scores["MOTA"] == pytest.approx(1 - (fp + fn + switches) / (tp + fn))
    assert 0 < result.scores["AssA"] < result.scores["HOTA"] < result.scores["DetA"] < 1


def test_one_swap_in_the_middle() -> None:
    """Half of each object has the other's identity: detection is perfect, AssA is 1/3 (a third of either union), HOTA its root."""
    a, b = moving(0, 0, 1, 8), moving(0, 12, 1, 8)
    truth = truth_of([track(a), track(b)], 8)
    result = score_identities(truth, [track(a[:4] + b[4:]), track(b[:4] + a[4:])])
    expected = {"IDF1": 0.5, "IDP": 0.5, "IDR": 0.5, "DetA": 1, "AssA": 1 / 3, "HOTA": 3**-0.5, "MOTA": 1 - 2 / 16}
    assert result.scores == pytest.approx(expected)
    counts = {"IDTP": 8, "IDFP": 8, "IDFN": 8, "TP": 16, "FP": 0, "FN": 0, "IDSW": 2, "frames": 8, "objects": 2, "tracks": 2}
    assert result.counts == counts
    summary = result.summary()
    assert "57.7" in summary and "IDSW" in summary


def test_videos_categories_crowds_and_the_threshold() -> None:
    a, b = moving(0, 0, 1, 5), moving(0, 12, 0, 5)
    truth = truth_of([track(a), track(b, video=2), track(b, crowd=True)], 5, videos=(1, 2))
    right = [track(a, score=0.9), track(b, video=2, score=0.8)]
    assert score_identities(truth, right).scores["IDF1"] == score_identities(truth, right).scores["HOTA"] == 1
    for wrong in (track(a, video=2, score=0.3), track(a, category=2, score=0.3), track(b, score=0.3)):
        result = score_identities(truth, [*right, wrong])
        assert (result.counts["IDFP"], result.counts["FP"], result.counts["tracks"], result.counts["frames"]) == (5, 5, 3, 10)
        assert score_identities(truth, [*right, wrong], score_threshold=0.3).counts == result.counts
        assert score_identities(truth, [*right, wrong], score_threshold=0.5).scores["IDF1"] == 1
    mixed = truth_of([*truth.tracks, track(moving(9, 0, 0, 5), category=2)], 5, videos=(1, 2))
    for kind, expected in (((1,), (10, 0, 0)), ((2,), (0, 5, 5)), ((1, 2), (10, 5, 5)), (None, (10, 5, 5))):
        counts = score_identities(mixed, [*right, track(a, category=2)], category_ids=kind).counts
        assert (counts["IDTP"], counts["IDFP"], counts["IDFN"]) == expected
    nothing = score_identities(truth, [])
    assert nothing.scores == dict.fromkeys(nothing.scores, 0) and nothing.counts["IDFN"] == nothing.counts["FN"] == 10


def test_some_videos() -> None:
    """As if the others were not there: neither their tracks nor their frames count."""
    objects = [track([(0, 0, 4, 4)] * 3, video) for video in (1, 2)]
    guesses = [track([(0, 0, 4, 4)] * 3, 1), track([(8, 8, 4, 4)] * 3, 2)]
    some = score_identities(truth_of(objects, 3, (1, 2)), guesses, video_ids=[1], bootstrap=Bootstrap(5))
    alone = score_identities(truth_of(objects[:1], 3), guesses[:1], bootstrap=Bootstrap(5))
    assert (some.scores, some.counts, some.intervals) == (alone.scores, alone.counts, alone.intervals)
    with pytest.raises(YTVISFormatError, match=r"video ids \[7\] are not"):
        score_identities(truth_of(objects, 3, (1, 2)), guesses, video_ids=[1, 7])
    assert some.counts["frames"] == 3 and some.counts["FP"] == 0 and some.scores["IDF1"] == 1


def test_tracks_longer_or_shorter_than_the_video() -> None:
    a = moving(0, 0, 1, 5)
    truth = truth_of([track(a)], 5)
    assert score_identities(truth, [track([*a, (0, 0, 9, 9)])]).counts["IDFP"] == 0
    assert score_identities(truth, [track(a[:3])]).counts["IDFN"] == 2


def test_blocks() -> None:
    rng = np.random.default_rng(0)
    for length, block in ((10, 3), (9, 3), (5, 50), (1, 0), (100, 0), (0, 0)):
        frames = block_frames(length, block, rng)
        size = min(block or round(length**0.5), length)
        assert frames.shape == (length,)
        if length:
            assert frames.min() >= 0 and frames.max() < length
            assert all((np.diff(frames[i : i + size]) == 1).all() for i in range(0, length, size))
    counted = np.bincount(np.concatenate([block_frames(10, 2, rng) for _ in range(3000)]), minlength=10)
    assert counted[1:-1].std() < 0.1 * counted[1:-1].mean() < counted.min(), "every frame comes, those at the ends half as often"


def test_intervals() -> None:
    truth, tracks = random_case(1, frames=40)
    bootstrap = Bootstrap(resamples=40, block=4, seed=3)
    result = score_identities(truth, tracks, bootstrap=bootstrap)
    again = score_identities(truth, tracks, bootstrap=bootstrap)
    assert result.intervals == again.intervals
    assert result.scores == score_identities(truth, tracks).scores
    assert result.intervals != score_identities(truth, tracks, bootstrap=Bootstrap(40, 4, seed=4)).intervals
    for name, (low, high) in result.intervals.items():
        assert low < result.scores[name] < high, name
        assert len(result.resampled[name]) == 40
        spread = result.resampled[name] - result.resampled[name].mean()
        assert (low, high) == pytest.approx(tuple(result.scores[name] + np.quantile(spread, [0.025, 0.975])))
    assert "MOTA" not in result.intervals
    perfect = score_identities(truth, truth.tracks, bootstrap=bootstrap)
    assert perfect.intervals["IDF1"] == pytest.approx((1, 1))
    gain, low, high = paired_difference(perfect, result, "IDF1")
    assert gain == pytest.approx(1 - result.scores["IDF1"]) and low < gain < high
    assert paired_difference(result, again, "HOTA") == (0, 0, 0)


def test_each_video_has_blocks_of_its_own() -> None:
    """Of its own length, drawn alike for two trackers of which one has no track in the first video."""
    frames = {1: 4, 2: 30}
    objects = [track(moving(0, 0, 0, length), video=v) for v, length in frames.items()]
    truth = GroundTruth({v: Video(H, W, length) for v, length in frames.items()}, {1: "person"}, objects)
    half = track([*moving(0, 0, 0, 15), *[None] * 15], video=2)
    bootstrap = Bootstrap(resamples=30, block=5)
    both, one = (score_identities(truth, tracks, bootstrap=bootstrap) for tracks in ([objects[0], half], [half]))
    shown = both.resampled["IDR"] * 34 - one.resampled["IDR"] * 34
    np.testing.assert_allclose(shown, 4, err_msg="the frames of the second video are the same ones")
    assert len(set(one.resampled["IDR"])) > 3


def test_box_overlaps_at_a_threshold_count() -> None:
    """7 of 20 pixels, which in float32 would be less than HOTA's threshold of 0.35."""
    result = score_identities(truth_of([track([(0, 0, 20, 1)])], 1), [track([(0, 0, 7, 1)])])
    assert result.scores["HOTA"] == pytest.approx(7 / 19), "thresholds 0.05 to 0.35 of 0.05 to 0.95"


def test_no_object() -> None:
    for tracks in ([], [track(moving(0, 0, 1, 3), crowd=True)]):
        with pytest.raises(YTVISFormatError, match="no object"):
            score_identities(truth_of(tracks, 3), [])


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackeval.metrics", None)
    for ask in (check_library, lambda: score_identities(truth_of([], 3), [])):
        with pytest.raises(MissingLibraryError, match=r"requirements/trackeval\.txt"):
            ask()
