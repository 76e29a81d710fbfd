from __future__ import annotations

import numpy as np
import pytest

from solotrack.visualization.colors import identity_color
from solotrack.visualization.contact_sheet import contact_sheet, draw_masks


def plain(height: int, width: int, value: int) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_colors_are_fixed_and_neighbours_differ() -> None:
    colors = np.array([identity_color(identity) for identity in range(200)], float)
    assert identity_color(17) == identity_color(17)
    assert colors.min() >= 0 and colors.max() <= 255
    assert len({tuple(color) for color in colors}) == 200
    assert colors.max(axis=1).min() > 150, "too dark to see"
    for step in (1, 2, 3, 4):
        assert np.linalg.norm(colors[step:] - colors[:-step], axis=1).min() > 60
    grey = identity_color(-1)
    assert len(set(grey)) == 1 and grey == identity_color(-5)


def test_masks_are_tinted_and_outlined() -> None:
    image = plain(12, 14, 100)
    masks = np.zeros((2, 12, 14), bool)
    masks[0, 2:8, 3:9] = True
    masks[1, 9:12, 10:14] = True  # touches the border
    drawn = draw_masks(image, masks, [4, 5], alpha=0.5)
    assert (image == 100).all()
    first, second = np.array(identity_color(4)), np.array(identity_color(5))
    inside = np.zeros((12, 14), bool)
    inside[3:7, 4:8] = True
    assert (drawn[masks[0] & ~inside] == first).all()
    assert (drawn[inside] == np.round(50 + 0.5 * first)).all()
    assert (drawn[11, 13] == second).all()
    assert (drawn[~masks.any(axis=0)] == 100).all()


def test_outline_can_be_left_out() -> None:
    masks = np.ones((1, 5, 5), bool)
    assert np.array_equal(draw_masks(plain(5, 5, 9), masks, [0], alpha=0.0, thickness=0), plain(5, 5, 9))


def test_no_masks() -> None:
    image = plain(5, 6, 9)
    assert np.array_equal(draw_masks(image, np.zeros((0, 5, 6), bool), []), image)


def test_masks_of_another_size() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        draw_masks(plain(5, 6, 9), np.zeros((1, 6, 5), bool), [0])
    with pytest.raises(ValueError, match="do not fit"):
        draw_masks(plain(5, 6, 9), np.zeros((1, 5, 6), bool), [0, 1])


def test_sheet_places_every_picture() -> None:
    rows = [[plain(10, 20, 1), plain(8, 20, 2)], [plain(6, 30, 3)], []]
    sheet = contact_sheet(rows, gap=4)
    assert sheet.shape == (4 + 14 + 10 + 4, 4 + 48, 3)
    assert (sheet[4:14, 4:24] == 1).all()
    assert (sheet[4:12, 28:48] == 2).all()
    assert (sheet[18:24, 4:34] == 3).all()
    assert (sheet == 255).sum() == sheet.size - 3 * (200 + 160 + 180), "the rest is paper"


def test_sheet_scales_pictures() -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    sheet = contact_sheet([[picture]], scale=2, gap=0)
    assert np.array_equal(sheet, picture.repeat(2, 0).repeat(2, 1))


def test_captions_are_written_above_their_rows() -> None:
    rows = [[plain(10, 200, 0)], [plain(10, 200, 0)]]
    bare, captioned = contact_sheet(rows), contact_sheet(rows, ["first", "a caption that is much wider than the row it stands above"])
    assert captioned.shape[0] == bare.shape[0] + 32
    assert captioned.shape[1] > bare.shape[1]
    assert (captioned[:20] < 200).any() and (captioned[20:30, 4:204] == 0).all()


def test_sheet_errors() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([[], []])
    with pytest.raises(ValueError, match="1 captions for 2 rows"):
        contact_sheet([[plain(2, 2, 0)], [plain(2, 2, 0)]], ["one"])
