from __future__ import annotations

import copy

import numpy as np
import pytest

from solotrack.evaluation import ytvis
from solotrack.evaluation.ytvis import evaluate_ytvis, tube_ious, videos_with_categories
from solotrack.evaluation.ytvis_format import YTVISFormatError, read_ground_truth, read_predictions
from solotrack.ops.rle import decode_rle, encode_masks

H, W = 12, 14
SMALL_RANGES = np.array([[0, 1e10], [0, 20], [20, 45], [45, 1e10]])
STATS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def video(video_id: int, length: int, height: int = H, width: int = W) -> dict:
    return {"id": video_id, "height": height, "width": width, "file_names": [f"{t}.jpg" for t in range(length)]}


def box_mask(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[max(y0, 0) : y1, max(x0, 0) : x1] = 1
    return mask


def compressed(mask: np.ndarray | None) -> dict | None:
    return None if mask is None else encode_masks(mask[None])[0]


def uncompressed(mask: np.ndarray) -> dict:
    change = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.reshape(-1)])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], change, [mask.size]])).tolist()}


def annotation(
    masks: list[np.ndarray | None], id: int, video_id: int = 1, category_id: int = 1, iscrowd: int = 0, form=uncompressed
) -> dict:
    return {
        "id": id,
        "video_id": video_id,
        "category_id": category_id,
        "iscrowd": iscrowd,
        "segmentations": [None if m is None else form(m) for m in masks],
        "areas": [None if m is None else int(m.sum()) for m in masks],
    }


def prediction(masks: list[np.ndarray | None], score: float, video_id: int = 1, category_id: int = 1) -> dict:
    return {"video_id": video_id, "category_id": category_id, "score": score, "segmentations": [compressed(m) for m in masks]}


def annotation_file(annotations: list[dict], videos: list[dict], n_categories: int = 1) -> dict:
    categories = [{"id": k, "name": f"cat{k}"} for k in range(1, n_categories + 1)]
    return {"videos": videos, "categories": categories, "annotations": annotations}


def random_tube(rng: np.random.Generator, length: int, near: list[np.ndarray | None] | None = None) -> list[np.ndarray | None]:
    x, y = rng.integers(-2, W - 2), rng.integers(-2, H - 2)
    w, h = rng.integers(2, 9, 2)
    tube: list[np.ndarray | None] = []
    for t in range(length):
        mask = box_mask(x + t, y, x + t + w, y + h)
        if near is not None and t < len(near) and rng.random() < 0.95:
            if near[t] is None:
                tube.append(None)
                continue
            mask = np.roll(near[t], rng.random() < 0.3, axis=int(rng.integers(2)))
            mask[rng.random((H, W)) < 0.01] ^= 1
        tube.append(None if rng.random() < 0.1 else mask)
    return tube


def random_case(seed: int) -> tuple[dict, list[dict]]:
    """Missing frames, empty masks, crowds, doubled ground truth, id 0, tied scores, lists of wrong length, absent categories."""
    rng = np.random.default_rng(seed)
    videos, annotations, predictions = [], [], []
    for v in (7, 3, 11, 5):
        length = int(rng.integers(1, 6))
        videos.append(video(v, length))
        tubes = []
        for _ in range(rng.integers(0, 5)):
            tube = random_tube(rng, length)
            category = int(rng.choice([1, 2, 4]))
            for _ in range(1 + (rng.random() < 0.15)):
                annotations.append(annotation(tube, len(annotations), v, category, int(rng.random() < 0.2)))
                tubes.append((category, tube))
        for _ in range(rng.integers(0, 16)):
            category, near = tubes[rng.integers(len(tubes))] if tubes and rng.random() < 0.8 else (int(rng.integers(1, 5)), None)
            tube = random_tube(rng, length + int(rng.choice([-1, 0, 0, 0, 0, 1])), near)
            predictions.append(prediction(tube, round(float(rng.random()), 1), v, category))
    return annotation_file(annotations, videos, 4), predictions


# ---- the metric in plain loops over decoded masks, METHOD 9.1


def slow_iou(dt: list[np.ndarray], gt: list[np.ndarray]) -> float:
    shared = union = 0
    for d, g in zip(dt, gt):  # noqa: B905 (the shorter list ends it)
        shared += np.logical_and(d, g).sum()
        union += np.logical_or(d, g).sum()
    return shared / union if union else 0.0


def slow_stats(ground_truth: dict, predictions: list[dict], category_ids=None, video_ids=None, ranges=SMALL_RANGES) -> dict[str, float]:
    category_ids = sorted(category_ids or [c["id"] for c in ground_truth["categories"]])
    video_ids = sorted(video_ids or [v["id"] for v in ground_truth["videos"]])
    thresholds, points = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)

    def decoded(record):
        return [np.zeros((H, W)) if s is None else decode_rle(s, H, W) for s in record["segmentations"]]

    def mean_of_present(areas):
        present = [a for a in areas if a]
        return np.mean(present) if present else 0

    gt_masks = [decoded(a) for a in ground_truth["annotations"]]
    dt_masks = [decoded(p) for p in predictions]
    precision, recall = {}, {}
    for k in category_ids:
        for a, (low, high) in enumerate(ranges):
            for limit in (1, 10, 100):
                for t, threshold in enumerate(thresholds):
                    found, n_gt = [], 0  # (score, right, ignored)
                    for v in video_ids:
                        gts = [i for i, g in enumerate(ground_truth["annotations"]) if (g["video_id"], g["category_id"]) == (v, k)]
                        dts = [i for i, p in enumerate(predictions) if (p["video_id"], p["category_id"]) == (v, k)]
                        dts = sorted(dts, key=lambda i: -predictions[i]["score"])[:limit]
                        ignore = {
                            i: bool(ground_truth["annotations"][i]["iscrowd"])
                            or not low <= mean_of_present(ground_truth["annotations"][i]["areas"]) <= high
                            for i in gts
                        }
                        n_gt += sum(not ignore[i] for i in gts)
                        taken = set()
                        for d in dts:
                            match, best = None, threshold
                            for g in sorted(gts, key=lambda i: ignore[i]):
                                if g in taken and not ground_truth["annotations"][g]["iscrowd"]:
                                    continue
                                if match is not None and not ignore[match] and ignore[g]:
                                    break
                                iou = slow_iou(dt_masks[d], gt_masks[g])
                                if iou >= best:
                                    match, best = g, iou
                            outside = not low <= mean_of_present([m.sum() for m in dt_masks[d]]) <= high
                            if match is None:
                                found.append((predictions[d]["score"], False, outside))
                                continue
                            taken.add(match)
                            right = ground_truth["annotations"][match]["id"] != 0
                            found.append((predictions[d]["score"], right, ignore[match] or (not right and outside)))
                    if not n_gt:
                        continue
                    kept = [(s, right) for s, right, ignored in sorted(found, key=lambda f: -f[0]) if not ignored]
                    curve, hits = [], 0
                    for n, (_, right) in enumerate(kept, start=1):
                        hits += right
                        curve.append((hits / n_gt, hits / n))
                    recall[t, k, a, limit] = hits / n_gt
                    for r, point in enumerate(points):
                        precision[t, r, k, a, limit] = max((p for rc, p in curve if rc >= point), default=0.0)

    def mean(table, t=None, a=0, limit=100):
        values = [x for key, x in table.items() if key[-2:] == (a, limit) and t in (None, key[0])]
        return np.mean(values) if values else -1.0

    return {
        **{"AP": mean(precision), "AP50": mean(precision, 0), "AP75": mean(precision, 5)},
        **{f"AP{size}": mean(precision, a=a) for a, size in enumerate("sml", start=1)},
        **{f"AR{limit}": mean(recall, limit=limit) for limit in (1, 10, 100)},
        **{f"AR{size}": mean(recall, a=a) for a, size in enumerate("sml", start=1)},
    }


@pytest.mark.parametrize("seed", range(12))
def test_same_as_loops_over_decoded_masks(seed, monkeypatch):
    monkeypatch.setattr(ytvis, "AREA_RANGES", SMALL_RANGES)
    ground_truth, predictions = random_case(seed)
    before = copy.deepcopy((ground_truth, predictions))
    result = evaluate_ytvis(ground_truth, predictions)
    assert list(result.stats) == STATS
    assert result.stats == pytest.approx(slow_stats(ground_truth, predictions), abs=1e-9)
    assert (ground_truth, predictions) == before
    for category, (name, row) in enumerate(result.per_category.items(), start=1):
        assert name == f"cat{category}"
        alone = slow_stats(ground_truth, predictions, category_ids=[category])
        tracks = sum(a["category_id"] == category and not a["iscrowd"] for a in ground_truth["annotations"])
        assert row == pytest.approx({**{key: alone[key] for key in ("AP", "AP50", "AP75", "AR1", "AR10")}, "tracks": tracks}, abs=1e-9)


def test_random_cases_are_worth_it(monkeypatch):
    """They hold what they are meant to, and score neither all nor nothing."""
    monkeypatch.setattr(ytvis, "AREA_RANGES", SMALL_RANGES)
    cases = [random_case(seed) for seed in range(12)]
    aps = [evaluate_ytvis(*case).stats["AP"] for case in cases]
    assert 0.15 < np.mean(aps) < 0.9
    annotations = [a for truth, _ in cases for a in truth["annotations"]]
    assert any(a["iscrowd"] for a in annotations)
    assert any(a["id"] == 0 for a in annotations)
    lengths = {v["id"]: len(v["file_names"]) for v in cases[0][0]["videos"]}
    assert any(len(p["segmentations"]) != lengths[p["video_id"]] for p in cases[0][1])


@pytest.mark.parametrize("seed", range(4))
def test_chosen_categories_and_videos(seed, monkeypatch):
    monkeypatch.setattr(ytvis, "AREA_RANGES", SMALL_RANGES)
    ground_truth, predictions = random_case(seed)
    result = evaluate_ytvis(ground_truth, predictions, category_ids=[4, 1], video_ids=[11, 3])
    assert result.stats == pytest.approx(slow_stats(ground_truth, predictions, [1, 4], [3, 11]), abs=1e-9)
    assert list(result.per_category) == ["cat1", "cat4"]


def test_videos_with_categories():
    one = [box_mask(0, 0, 4, 4)]
    truth = annotation_file(
        [annotation(one, 1, 9, 2), annotation(one, 2, 4, 1), annotation(one, 3, 2, 2), annotation(one, 4, 2, 2)],
        [video(v, 1) for v in (9, 4, 2, 1)],
        3,
    )
    assert videos_with_categories(read_ground_truth(truth), [2, 3]) == [2, 9]


@pytest.mark.parametrize("seed", range(3))
def test_tube_ious_are_those_of_decoded_masks(seed):
    rng = np.random.default_rng(seed)
    lengths = [5, 4, 5, 6, 5, 1]
    gts = [random_tube(rng, 5) for _ in range(3)] + [[None] * 5]
    dts = [random_tube(rng, n, gts[i % 3]) for i, n in enumerate(lengths)] + [[None] * 5, [np.zeros((H, W), np.uint8)] * 5]
    truth = read_ground_truth(annotation_file([annotation(g, i + 1) for i, g in enumerate(gts)], [video(1, 5)]))
    tracks, _ = read_predictions([prediction(d, 0.5) for d in dts], truth)

    def filled(tube):
        return [np.zeros((H, W)) if m is None else m for m in tube]

    expected = np.array([[slow_iou(filled(d), filled(g)) for g in gts] for d in dts])
    np.testing.assert_array_equal(tube_ious(tracks, truth.tracks), expected)
    enough = tube_ious(tracks, truth.tracks, needed=0.5)
    np.testing.assert_array_equal(enough[expected >= 0.5], expected[expected >= 0.5])
    assert (enough[expected < 0.5] < 0.5).all()
    assert (expected >= 0.5).any()


def test_large_intersections_come_back_exactly():
    """Recovered from the ratio that pycocotools gives, at the size of real frames."""
    rng = np.random.default_rng(0)
    masks = (rng.random((4, 1080, 1920)) < rng.random((4, 1, 1))).astype(np.uint8)
    data = annotation_file([annotation([m], i + 1) for i, m in enumerate(masks[:2])], [video(1, 1, 1080, 1920)])
    truth = read_ground_truth(data)
    tracks, _ = read_predictions([prediction([m], 0.5) for m in masks[2:]], truth)
    expected = [[np.logical_and(d, g).sum() / np.logical_or(d, g).sum() for g in masks[:2]] for d in masks[2:]]
    np.testing.assert_array_equal(tube_ious(tracks, truth.tracks), expected)


def test_ground_truth_as_predictions_is_perfect_in_each_form():
    tube = [box_mask(2, 3, 7, 9), None, box_mask(4, 3, 9, 9)]
    polygon = [[2, 3, 7, 3, 7, 9, 2, 9]]
    for form in (uncompressed, compressed, lambda mask: polygon if mask[3, 2] else uncompressed(mask)):
        truth = annotation_file([annotation(tube, 1, form=form)], [video(1, 3)])
        stats = evaluate_ytvis(truth, [prediction(tube, 0.3)]).stats
        assert stats == pytest.approx({**dict.fromkeys(STATS, 1.0), "APm": -1.0, "APl": -1.0, "ARm": -1.0, "ARl": -1.0})


def test_no_predictions():
    truth = annotation_file([annotation([box_mask(0, 0, 4, 4)], 1)], [video(1, 1)], 2)
    result = evaluate_ytvis(truth, [])
    assert result.stats == {**dict.fromkeys(STATS, 0.0), "APm": -1.0, "APl": -1.0, "ARm": -1.0, "ARl": -1.0}
    assert result.per_category["cat1"] == {"AP": 0, "AP50": 0, "AP75": 0, "AR1": 0, "AR10": 0, "tracks": 1}
    assert result.per_category["cat2"] == {"AP": -1, "AP50": -1, "AP75": -1, "AR1": -1, "AR10": -1, "tracks": 0}


def test_no_ground_truth_leaves_all_undefined():
    result = evaluate_ytvis(annotation_file([], [video(1, 1)]), [prediction([box_mask(0, 0, 3, 3)], 0.5)])
    assert result.stats == dict.fromkeys(STATS, -1.0)
    assert " - " in result.summary()


def test_one_frame_video_with_a_false_positive_ranked_first():
    mask = box_mask(1, 1, 6, 6)
    truth = annotation_file([annotation([mask], 1)], [video(1, 1)])
    stats = evaluate_ytvis(truth, [prediction([box_mask(9, 9, 12, 12)], 0.9), prediction([mask], 0.8)]).stats
    assert stats["AP"] == pytest.approx(0.5)
    assert stats["AR1"] == 0
    assert stats["AR10"] == 1


def test_only_the_best_hundred_of_a_video_and_category_count():
    mask = box_mask(1, 1, 6, 6)
    truth = annotation_file([annotation([mask], 1), annotation([mask], 2, category_id=2)], [video(1, 1)], 2)
    wrong = [prediction([box_mask(9, 9, 12, 12)], 0.9) for _ in range(100)]
    stats = evaluate_ytvis(truth, [*wrong, prediction([mask], 0.8), prediction([mask], 0.1, category_id=2)]).per_category
    assert stats["cat1"]["AP"] == 0
    assert stats["cat2"]["AP"] == pytest.approx(1)
    assert evaluate_ytvis(truth, [*wrong[1:], prediction([mask], 0.8)]).per_category["cat1"]["AP"] == pytest.approx(0.01)


def test_ties_go_by_the_files_order():
    mask = box_mask(1, 1, 6, 6)
    truth = annotation_file([annotation([mask], 1)], [video(1, 1)])
    right, wrong = prediction([mask], 0.5), prediction([box_mask(9, 9, 12, 12)], 0.5)
    assert evaluate_ytvis(truth, [right, wrong]).stats["AR1"] == 1
    assert evaluate_ytvis(truth, [wrong, right]).stats["AR1"] == 0


def test_wrong_length_is_a_warning_or_an_error(caplog):
    tube = [box_mask(1, 1, 6, 6)] * 3
    truth = annotation_file([annotation(tube, 1)], [video(1, 3)])
    short = [prediction(tube[:2], 0.5)]
    with caplog.at_level("WARNING"):
        assert evaluate_ytvis(truth, short).stats["AP"] == pytest.approx(1)  # the frames both have agree
    assert "prediction 0: 2 segmentations for the 3 frames of video 1" in caplog.text
    with pytest.raises(YTVISFormatError, match="2 segmentations for the 3 frames"):
        evaluate_ytvis(truth, short, strict=True)


def test_unknown_choices_are_errors():
    truth = annotation_file([annotation([box_mask(0, 0, 4, 4)], 1)], [video(1, 1)])
    with pytest.raises(ValueError, match=r"category ids \[5\]"):
        evaluate_ytvis(truth, [], category_ids=[1, 5])
    with pytest.raises(ValueError, match=r"video ids \[8\]"):
        evaluate_ytvis(truth, [], video_ids=[8])
    with pytest.raises(ValueError, match="no category is left"):
        evaluate_ytvis(truth, [], category_ids=[])


def test_a_negative_run_is_an_error_where_pycocotools_would_not_end():
    mask = np.zeros(W * H, np.uint8)
    mask[10:40] = 1
    mask = mask.reshape(W, H).T
    truth = annotation_file([annotation([mask], 1)], [video(1, 1)])
    # runs 10, 45, -15, 5, 123: 168 pixels in all, 50 in the foreground
    rle = {"size": [H, W], "counts": ":]1AhNZ4"}
    with pytest.raises(YTVISFormatError, match=r"^predictions: prediction 0: segmentations\[0\].*negative run"):
        evaluate_ytvis(truth, [{"video_id": 1, "category_id": 1, "score": 0.5, "segmentations": [rle]}])


def test_categories_of_one_name_keep_apart():
    truth = annotation_file([annotation([box_mask(0, 0, 4, 4)], 1)], [video(1, 1)], 3)
    truth["categories"][2]["name"] = "cat1"
    assert list(evaluate_ytvis(truth, []).per_category) == ["cat1 (1)", "cat2", "cat1 (3)"]


def test_summary_shows_percent_and_the_categories_that_occur():
    tube = [box_mask(2, 3, 7, 9)]
    text = evaluate_ytvis(annotation_file([annotation(tube, 1)], [video(1, 1)], 2), [prediction(tube, 0.5)]).summary()
    assert "100.00" in text
    assert "AR100" in text
    assert "cat1" in text
    assert "cat2" not in text
