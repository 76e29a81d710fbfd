"""One colour per identity, in every picture the same."""

from __future__ import annotations

import colorsys

__all__ = ["identity_color"]

_GOLDEN_RATIO = 0.6180339887498949
_SHADES = ((0.85, 1.0), (0.45, 1.0), (1.0, 0.75))  # saturation, value


def identity_color(identity: int) -> tuple[int, int, int]:
    """RGB colour (0 to 255) of an identity: always the same, and far in hue from those of the neighbouring numbers.

    A negative number, which stands for "belongs to no track", is grey.
    """
    if identity < 0:
        return 160, 160, 160
    saturation, value = _SHADES[identity % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((identity * _GOLDEN_RATIO) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
