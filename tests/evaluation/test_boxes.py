from __future__ import annotations

import numpy as np
import pytest

from solotrack.evaluation.boxes import boxes_by_frame, with_box_masks, with_box_truth
from solotrack.evaluation.ytvis import score_tracks, tube_ious
from solotrack.evaluation.ytvis_format import GroundTruth, Track, Video, YTVISFormatError, read_ground_truth, read_predictions
from solotrack.ops.rle import decode_rle, encode_masks

H, W = 11, 9


def files(seed: int, frames: int = 6) -> tuple[GroundTruth, list[Track]]:
    """One video, three objects and four tracks of random blobs, some frames empty or null."""
    rng = np.random.default_rng(seed)

    def rles() -> list[dict | None]:
        masks = np.zeros((frames, H, W), bool)
        for mask in masks:
            y, x = rng.integers(0, H), rng.integers(0, W)
            mask[y : y + rng.integers(0, H + 1), x : x + rng.integers(1, W + 1)] = True
            mask &= rng.random((H, W)) < 0.7
        return [None if rng.random() < 0.2 else rle for rle in encode_masks(masks)]

    truth = {
        "videos": [{"id": 1, "height": H, "width": W, "file_names": ["f"] * frames}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": i, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": rles(), "areas": [5] * frames} for i in (1, 2, 3)
        ],
    }
    predictions = [{"video_id": 1, "category_id": 1, "score": 0.1 * i, "segmentations": rles()} for i in range(4)]
    ground_truth = read_ground_truth(truth)
    return ground_truth, read_predictions(predictions, ground_truth)[0]


def slow_box(rle: dict) -> list[int] | None:
    ys, xs = np.nonzero(decode_rle(rle, H, W))
    return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(xs) else None


@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_those_of_the_pixels(seed: int) -> None:
    truth, tracks = files(seed)
    for track in truth.tracks + tracks:
        expected = {t: box for t, rle in enumerate(track.rles) if rle and (box := slow_box(rle))}
        found = boxes_by_frame(track)
        assert {t: box.tolist() for t, box in found.items()} == expected


@pytest.mark.parametrize("seed", range(5))
def test_box_masks_are_filled_boxes(seed: int) -> None:
    _, tracks = files(seed)
    for before, after in zip(tracks, with_box_masks(tracks), strict=True):
        shown = []
        for t, rle in enumerate(before.rles):
            box = slow_box(rle) if rle else None
            assert (after.rles[t] is None) == (box is None)
            assert after.areas[t] == (0 if box is None else (box[2] - box[0]) * (box[3] - box[1]))
            if box is not None:
                expected = np.zeros((H, W), np.uint8)
                expected[box[1] : box[3], box[0] : box[2]] = 1
                np.testing.assert_array_equal(decode_rle(after.rles[t], H, W), expected)
                shown.append(expected.sum())
        assert after.mean_area == (np.mean(shown) if shown else 0)
        assert (after.score, after.id, after.video_id) == (before.score, before.id, before.video_id)


def test_tubes_of_boxes_match_where_masks_do_not() -> None:
    """A ring and the disc inside its box have one box and share no pixel."""
    ring = np.ones((1, H, W), bool)
    ring[:, 1:-1, 1:-1] = False
    cross = np.zeros((1, H, W), bool)
    cross[:, H // 2], cross[:, :, W // 2] = True, True
    truth = GroundTruth({1: Video(H, W, 1)}, {1: "x"}, [])
    for masks, tracks in ((ring, truth.tracks), (cross, guesses := [])):
        areas = masks.sum((1, 2))
        tracks.append(Track(1, "t", 1, 1, 0.5, False, float(areas[0]), encode_masks(masks), areas))
    assert score_tracks(truth, guesses).stats["AP"] == 0
    assert score_tracks(with_box_truth(truth), with_box_masks(guesses)).stats["AP"] == pytest.approx(1)


def test_boxes_as_high_as_the_picture_are_compared_to_their_ends() -> None:
    """Runs of no pixel between their columns would end pycocotools' comparison after the first column."""
    tracks = []
    for width in (2, 6):
        masks = np.zeros((1, H, W), bool)
        masks[:, :, 1 : 1 + width] = True
        tracks += with_box_masks([Track(1, "t", 1, 1, 0.5, False, 0.0, encode_masks(masks), masks.sum((1, 2)))])
    np.testing.assert_allclose(tube_ious(tracks[:1], tracks), [[1, 1 / 3]])


def test_runs_below_zero_are_refused() -> None:
    # runs 10, 45, -15, 5, 123: 168 pixels in all, 50 in the foreground
    track = Track(0, "prediction 0", 1, 1, 1.0, False, 50.0, [{"size": [12, 14], "counts": ":]1AhNZ4"}], np.array([50]))
    with pytest.raises(YTVISFormatError, match=r"prediction 0: segmentations\[0\]: broken RLE: its counts hold a negative run"):
        boxes_by_frame(track)
