"""SipMask-VIS's head: shapes, the order of locations, what feeds what, and how it starts."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch.nn import functional as F

from solotrack.config import load_config
from solotrack.modeling.sipmask.head import SipMaskHead
from tests import tiny

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2)]  # one level more than the three that make the basis masks


def head(changes: dict | None = None) -> SipMaskHead:
    torch.manual_seed(0)
    names = {"MODEL.SIPMASK.IN_FEATURES": ["p2", "p3", "p4", "p5"]}
    cfg = load_config("", tiny.words(tiny.options(tiny.sipmask() | names | (changes or {}))))
    return SipMaskHead(cfg, {name: ShapeSpec(channels=16, stride=2 ** int(name[1])) for name in names["MODEL.SIPMASK.IN_FEATURES"]})


def features(requires_grad: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, 16, *size, requires_grad=requires_grad) for size in SIZES]


def test_shapes() -> None:
    out = head()(features())
    locations = sum(h * w for h, w in SIZES)
    assert out.logits.shape == (2, locations, 4) and out.deltas.shape == (2, locations, 4) and out.centerness.shape == (2, locations, 1)
    assert out.coefficients.shape == (2, locations, 4, 8) and out.basis.shape == (2, 8, 8, 12)
    assert head().track_map(features()).shape == (2, 32, 8, 12)


def test_locations_go_level_by_level_and_row_by_row() -> None:
    model, xs = head(), features()
    out = model(xs)
    tower = model.class_tower(xs[1])
    level, row, column = 1, 2, 5
    location = 8 * 12 + row * 6 + column
    assert level == 1
    torch.testing.assert_close(out.logits[1, location], model.class_out(tower)[1, :, row, column])
    raw = model.coefficient_out(tower)[1, :, row, column]
    torch.testing.assert_close(out.coefficients[1, location], torch.stack(raw.split(8)))
    about_box = model.box_tower(xs[1])
    torch.testing.assert_close(out.deltas[1, location], model.box_out(about_box)[1, :, row, column])
    torch.testing.assert_close(out.centerness[1, location], model.center_out(about_box)[1, :, row, column])


def test_basis_and_tracking_map_by_hand() -> None:
    model, xs = head(), features()

    def joined(tower: torch.nn.Module) -> torch.Tensor:
        maps = [tower(x) for x in xs[:3]]
        return torch.cat([F.interpolate(x, size=SIZES[0], mode="bilinear", align_corners=False) for x in maps], dim=1)

    torch.testing.assert_close(model(xs).basis, model.basis_out(model.basis_join(joined(model.box_tower)).relu()).relu())
    torch.testing.assert_close(model.track_map(xs), model.track_out(joined(model.track_tower)))


@pytest.mark.parametrize(
    ("output", "towers"),
    [("logits", "class"), ("coefficients", "class"), ("deltas", "box"), ("centerness", "box"), ("basis", "box"), ("track", "track")],
)
def test_what_feeds_what(output: str, towers: str) -> None:
    model, xs = head(), features(requires_grad=True)
    value = model.track_map(xs) if output == "track" else getattr(model(xs), output)
    value.square().sum().backward()
    reached = {name.removesuffix("_tower") for name, part in model.named_children() if "tower" in name and _has_gradient(part)}
    assert reached == {towers}
    levels = [x.grad is not None and bool(x.grad.any()) for x in xs]
    assert levels == [True, True, True, output not in ("basis", "track")]


def _has_gradient(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and p.grad.any() for p in module.parameters())


def test_how_it_starts() -> None:
    """Every class improbable, every side of a box with a gradient, masks undecided but not without one."""
    model = head({"MODEL.SIPMASK.PRIOR_PROB": 0.02})
    out = model(features())
    assert out.logits.sigmoid().mean().item() == pytest.approx(0.02, rel=0.1)
    assert (out.deltas > 1).all()
    assert out.basis.mean() > 0.1 and 0 < out.coefficients.abs().mean() < 1


def test_half_precision_gives_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head()(features())
    assert {getattr(out, name).dtype for name in ("logits", "deltas", "centerness", "coefficients", "basis")} == {torch.float32}
