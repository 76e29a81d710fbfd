from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from solotrack.ops.rle import compress_rle, decode_rle, encode_masks, has_negative_runs, measure_counts, rle_areas, rle_to_json


def runs_of(mask: np.ndarray) -> list[int]:
    """Column-major run lengths that begin with background, pixel by pixel."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if bool(pixel) != bool(value):
            runs.append(0)
            value = 1 - value
        runs[-1] += 1
    return runs


def runs_of_string(text: str) -> list[int]:
    """COCO's string: 5 bits a character, the lowest first; from the fourth run on the difference to the run two places before."""
    runs, i = [], 0
    while i < len(text):
        value, shift = 0, 0
        while True:
            code = ord(text[i]) - 48
            value |= (code & 31) << shift
            shift, i = shift + 5, i + 1
            if not code & 32:
                break
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def random_masks(seed: int, n: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((n, height, width)) < rng.random((n, 1, 1))).astype(np.uint8)


@pytest.mark.parametrize("kind", ["bool tensor", "uint8 array", "view"])
def test_encode_is_the_run_lengths_and_decode_brings_the_mask_back(kind):
    masks = random_masks(0, 5, 7, 9)
    masks[0], masks[1] = 0, 1
    given = {"bool tensor": torch.from_numpy(masks).bool(), "uint8 array": masks, "view": torch.from_numpy(masks).mT.contiguous().mT}[kind]
    rles = encode_masks(given)
    assert json.loads(json.dumps(rles)) == rles
    for mask, rle in zip(masks, rles, strict=True):
        assert rle["size"] == [7, 9]
        assert runs_of_string(rle["counts"]) == runs_of(mask)
        for form in (rle, {**rle, "counts": rle["counts"].encode()}, {"size": [7, 9], "counts": runs_of(mask)}):
            decoded = decode_rle(form, 7, 9)
            assert decoded.dtype == np.uint8
            np.testing.assert_array_equal(decoded, mask)


def test_encode_takes_values_beside_one_as_foreground():
    np.testing.assert_array_equal(decode_rle(encode_masks(np.array([[[0, 255], [2, 0]]], np.uint8))[0], 2, 2), [[0, 1], [1, 0]])


def test_encode_of_nothing():
    assert encode_masks(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
    with pytest.raises(ValueError, match=r"\(n, H, W\)"):
        encode_masks(torch.zeros(4, 5))


def test_decode_draws_the_union_of_polygons():
    mask = decode_rle([[1, 1, 4, 1, 4, 3, 1, 3], [6, 0, 8, 0, 8, 2, 6, 2]], 5, 10)
    expected = np.zeros((5, 10), np.uint8)
    expected[1:3, 1:4] = 1
    expected[0:2, 6:8] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 6], "counts": [24]}, "size"),
        ({"size": 5, "counts": [25]}, "size"),
        ({"size": [5, 6], "counts": [10, 5]}, "cover 15 pixels, not height x width = 30"),
        ({"size": [5, 6], "counts": [10, 25]}, "cover 35 pixels"),
        ({"size": [5, 6], "counts": [40, -10]}, "non-negative"),
        ({"size": [5, 6], "counts": [10.0, 20.0]}, "integers"),
        ({"size": [5, 6], "counts": None}, "counts"),
        ({"size": [5, 6], "counts": "T"}, "no run-length string"),
        ({"size": [5, 6], "counts": ""}, "no run-length string"),
        ({"size": [5, 6], "counts": "5"}, "cover 5 pixels"),
        ({"size": [5, 6]}, "'counts'"),
        ("abc", "polygons or an RLE"),
        ([], "three or more points"),
        ([[1, 2, 3, 4]], "three or more points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([1, 2, 3, 4, 5, 6], "three or more points"),
        ([["a", "b"]], "numbers"),
    ],
)
def test_decode_refuses_what_is_malformed(segmentation, message):
    with pytest.raises(ValueError, match=message):
        decode_rle(segmentation, 5, 6)


def test_compress_leaves_a_sound_string_alone():
    rle = encode_masks(random_masks(1, 1, 6, 4))[0]
    assert compress_rle(rle, 6, 4) == rle


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (700, 900)])
def test_measured_counts_are_area_and_size(size):
    masks = random_masks(2, 6, *size)
    masks[0], masks[1] = 0, 1
    masks[2, :, : size[1] // 2] = 0  # a long first run
    masks[3, 0, 0] = 1  # a first run of zero
    areas, pixels = measure_counts([rle["counts"] for rle in encode_masks(masks)])
    np.testing.assert_array_equal(areas, masks.reshape(6, -1).sum(1))
    np.testing.assert_array_equal(pixels, size[0] * size[1])


def test_measured_counts_of_more_strings_than_a_call_takes():
    masks = random_masks(3, 611, 3, 4)
    rles = encode_masks(masks)
    broken = [0, 250, 610]
    counts = [rle["counts"] if i % 2 else rle["counts"].encode() for i, rle in enumerate(rles)]
    for i in broken:
        counts[i] = "\x00"
    areas, pixels = measure_counts(counts)
    sound = np.setdiff1d(np.arange(611), broken)
    np.testing.assert_array_equal(areas[sound], masks.reshape(611, -1).sum(1)[sound])
    assert (pixels[sound] == 12).all()
    assert (pixels[broken] == -1).all()
    np.testing.assert_array_equal(rle_areas(rles), masks.reshape(611, -1).sum(1))
    assert rle_areas([]).shape == measure_counts([])[0].shape == (0,)


def test_measured_counts_see_every_broken_string():
    """Each cut and each changed character of a sound string is refused, or measured as what it means."""
    good = encode_masks(random_masks(4, 1, 12, 13))[0]["counts"]
    cut = [good[:n] for n in range(len(good))]
    changed = [good[:i] + chr(ord(good[i]) ^ 1) + good[i + 1 :] for i in range(len(good))]
    _, pixels = measure_counts(cut + changed)
    for text, found in zip(cut + changed, pixels.tolist(), strict=True):
        ends = text and not (ord(text[-1]) - 48) & 32
        total = sum(r % 2**32 for r in runs_of_string(text)) if ends and runs_of_string(text)[0] >= 0 else -1
        # pycocotools adds unsigned 32-bit numbers
        assert (found == -1) if total == -1 else (found - total) % 2**32 == 0, text
    assert (pixels[: len(cut)] != 12 * 13).mean() > 0.9
    assert (pixels[len(cut) :] != 12 * 13).all()


@pytest.mark.parametrize("text", ["", "PPPPPPPPPPPPPPP", "5P", "5é", "5ð", "5\x005", "P\x00", "@"])
def test_measured_counts_refuse_what_c_code_would_misread(text):
    """Cut numbers, bytes that end a C string, a negative first run."""
    assert measure_counts([text])[1].tolist() == [-1]


def test_rle_to_json_turns_numpy_and_bytes_into_json_types():
    rle = coco_mask.encode(np.asfortranarray(random_masks(5, 1, 4, 4)[0]))
    rle["size"] = np.array(rle["size"])
    assert json.loads(json.dumps(rle_to_json(rle))) == {"size": [4, 4], "counts": rle["counts"].decode()}
    assert rle_to_json({"size": (2, 2), "counts": np.array([1, 3])}) == {"size": [2, 2], "counts": [1, 3]}


def string_of(runs: list[int]) -> str:
    text = ""
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text += chr((code | 32 if more else code) + 48)
            if not more:
                break
    return text


@pytest.mark.parametrize(
    ("runs", "negative"),
    [
        ([10, 5, 15], False),
        ([0, 30], False),
        ([4, 5, 0, 6, 15], False),
        ([10, -5, 25], True),
        ([3, 20, 4, -2, 5], True),
        ([30, 5, -5], True),
    ],
)
def test_negative_runs_that_others_make_up_for(runs, negative):
    """With them pycocotools' IoU would never end."""
    text = string_of(runs)
    assert runs_of_string(text) == runs
    assert measure_counts([text])[1][0] % 2**32 == 30
    assert has_negative_runs(text) == has_negative_runs(text.encode()) == negative
    if negative:
        with pytest.raises(ValueError, match=r"negative run|cover \d+ pixels"):
            decode_rle({"size": [5, 6], "counts": text}, 5, 6)


def test_longer_spellings_of_a_number_are_not_negative():
    text = "Z05T0"  # 10 as two characters, 5, 4 as two
    assert runs_of_string(text) == [10, 5, 4]
    assert not has_negative_runs(text)
