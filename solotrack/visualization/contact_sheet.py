"""Many small pictures on one sheet, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .colors import identity_color

__all__ = ["contact_sheet", "draw_masks"]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_SCALE = 0.4
_LINE = 16  # pixels of a line of text
_PAPER, _INK = 255, (40, 40, 40)


def draw_masks(image: np.ndarray, masks: np.ndarray, identities: Sequence[int], alpha: float = 0.25, thickness: int = 1) -> np.ndarray:
    """Tint and outline masks, each in the colour of its identity.

    Args:
        image: (H, W, 3) uint8 RGB; left as it is.
        masks: (N, H, W) bool.
        identities: N numbers, see :func:`~solotrack.visualization.colors.identity_color`.
        alpha: strength of the tint, 0 (outline only) to 1 (opaque).
        thickness: pixels of the outline, drawn inside the mask; 0 for none.

    Returns:
        (H, W, 3) uint8 RGB, a new array.

    Raises:
        ValueError: the sizes do not agree.
    """
    masks = np.asarray(masks, bool)
    if masks.shape != (len(identities), *image.shape[:2]):
        raise ValueError(f"masks of shape {masks.shape} do not fit {len(identities)} identities on an image of {image.shape[:2]}")
    drawn = image.copy()
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    for mask, identity in zip(masks, identities, strict=True):
        color = np.array(identity_color(int(identity)))
        drawn[mask] = np.round((1 - alpha) * drawn[mask] + alpha * color)
        inner = cv2.erode(mask.astype(np.uint8), kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0).astype(bool)
        drawn[mask & ~inner] = color
    return drawn


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] | None = None, *, scale: float = 1.0, gap: int = 4
) -> np.ndarray:
    """Lay out rows of pictures on white paper.

    Args:
        rows: rows of (H, W, 3) uint8 RGB pictures; rows may differ in length and pictures in size.
        captions: one line of text above each row.
        scale: size of a picture on the sheet; 2 doubles every pixel.
        gap: pixels between pictures.

    Returns:
        (height, width, 3) uint8 RGB.

    Raises:
        ValueError: no pictures, or not one caption a row.
    """
    if not any(len(row) for row in rows):
        raise ValueError("a contact sheet needs at least one picture")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows: give one a row")
    strips = []
    for index, row in enumerate(rows):
        pictures = [_resize(picture, scale) for picture in row]
        text = None if captions is None else captions[index]
        strips.append(_strip(pictures, text, gap))
    width = max(strip.shape[1] for strip in strips)
    padded = [_pad(strip, strip.shape[0], width) for strip in strips]
    return np.pad(np.vstack(padded), ((gap, 0), (gap, 0), (0, 0)), constant_values=_PAPER)


def _resize(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)


def _strip(pictures: Sequence[np.ndarray], text: str | None, gap: int) -> np.ndarray:
    """One row of pictures, each with a gap to the right and below, under its caption."""
    height = max((picture.shape[0] for picture in pictures), default=0) + gap
    cells = [_pad(picture, height, picture.shape[1] + gap) for picture in pictures]
    strip = np.hstack(cells) if cells else np.full((gap, gap, 3), _PAPER, np.uint8)
    if text is None:
        return strip
    (text_width, _), _ = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
    width = max(strip.shape[1], text_width + gap)
    label = np.full((_LINE, width, 3), _PAPER, np.uint8)
    cv2.putText(label, text, (0, _LINE - 5), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    return np.vstack([label, _pad(strip, strip.shape[0], width)])


def _pad(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """``picture`` in the upper left corner of white paper of the given size."""
    return np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)), constant_values=_PAPER)
