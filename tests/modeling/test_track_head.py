"""The track head and its loss, against one box at a time."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from solotrack.config import load_config
from solotrack.modeling.track_head import TrackHead, association_loss


def slow_loss(embeddings: list, ids: list, references: list, reference_ids: list) -> float:
    """Images, boxes and references in loops, in double precision."""
    per_image = []
    for xs, own, ys, known in zip(embeddings, ids, references, reference_ids, strict=True):
        if not len(own) or not len(known):
            continue
        terms = []
        for x, track in zip(xs.double(), own.tolist(), strict=True):
            logits = [0.0] + [float(x @ y) for y in ys.double()]
            target = known.tolist().index(track) + 1 if track in known.tolist() else 0
            terms.append(math.log(sum(math.exp(v) for v in logits)) - logits[target])
        per_image.append(sum(terms) / len(terms))
    return sum(per_image) / len(per_image)


def test_loss_equals_loops() -> None:
    """Tracks are numbered anew in every video, several boxes are of one object, some are new, some images have nothing."""
    generator = torch.Generator().manual_seed(0)
    absent = empty = 0
    for _ in range(30):
        embeddings, ids, references, reference_ids = [], [], [], []
        for _ in range(4):
            n, m = (int(torch.randint(0, 4, (1,), generator=generator)) for _ in range(2))
            embeddings.append(torch.randn(n, 5, generator=generator))
            ids.append(torch.randint(0, 5, (n,), generator=generator))
            references.append(torch.randn(m, 5, generator=generator))
            reference_ids.append(torch.randperm(5, generator=generator)[:m])
            absent += sum(i not in reference_ids[-1].tolist() for i in ids[-1].tolist()) if m else 0
            empty += not n or not m
        if not any(len(a) and len(b) for a, b in zip(ids, reference_ids, strict=True)):
            continue
        loss = association_loss(torch.cat(embeddings), ids, torch.cat(references), reference_ids)
        assert loss.item() == pytest.approx(slow_loss(embeddings, ids, references, reference_ids), rel=1e-5)
    assert min(absent, empty) > 20


def test_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    references = torch.tensor([[1.0, 0.0]])
    ids, known = [torch.tensor([7, 8])], [torch.tensor([7])]
    loss = association_loss(x, ids, references, known)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(2)) - 2 + math.log(2)) / 2)
    half = association_loss(x.bfloat16(), ids, references.bfloat16(), known)
    assert half.dtype == torch.float32


def test_large_products_stay_finite() -> None:
    x = torch.full((1, 4), 100.0, requires_grad=True)
    loss = association_loss(x, [torch.tensor([1])], torch.full((2, 4), 100.0), [torch.tensor([1, 2])])
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and x.grad.isfinite().all()


@pytest.mark.parametrize("counts", [((0, 0), (2, 1)), ((2, 1), (0, 0)), ((2, 0), (0, 1))])
def test_nothing_to_associate_is_zero_with_gradients(counts: tuple) -> None:
    ids, reference_ids = ([torch.arange(n) for n in part] for part in counts)
    x, y = (torch.randn(sum(part), 3, requires_grad=True) for part in counts)
    loss = association_loss(x, ids, y, reference_ids)
    loss.backward()
    assert loss.item() == 0 and not x.grad.any() and not y.grad.any()


def head(*overrides: str) -> TrackHead:
    keys = ["MODEL.ROI_HEADS.IN_FEATURES", "['p2']", "MODEL.TRACK_HEAD.FC_DIM", "6", "MODEL.TRACK_HEAD.POOLER_RESOLUTION", "3"]
    torch.manual_seed(0)
    return TrackHead(load_config("", [*keys, *overrides]), {"p2": ShapeSpec(channels=2, stride=4)})


def test_embedding_of_a_box() -> None:
    """RoIAlign, layer, ReLU, layer: without an activation at the end."""
    track_head = head()
    for layer in track_head.layers:
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    features = {"p2": torch.randn(2, 2, 8, 8), "p9": torch.zeros(1)}
    boxes = [Boxes(torch.tensor([[4.0, 4.0, 20.0, 12.0], [0.0, 0.0, 31.0, 31.0]])), Boxes(torch.tensor([[9.0, 1.0, 12.0, 30.0]]))]
    out = track_head(features, boxes)
    crops = roi_align(features["p2"], [b.tensor for b in boxes], 3, spatial_scale=1 / 4, sampling_ratio=2, aligned=True)
    first, second = track_head.layers
    expected = (crops.flatten(1) @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    torch.testing.assert_close(out, expected)
    assert out.shape == (3, 6) and (out < 0).any()
    assert track_head(features, [Boxes(torch.zeros(0, 4))] * 2).shape == (0, 6)


def test_layers_follow_the_config() -> None:
    assert [tuple(layer.weight.shape) for layer in head().layers] == [(6, 18), (6, 6)]
    three = head("MODEL.TRACK_HEAD.NUM_FC", "3")
    assert len(three.layers) == 3 and not any(layer.bias.any() for layer in three.layers)
    assert torch.cat([layer.weight.flatten() for layer in three.layers]).std().item() == pytest.approx(0.01, rel=0.2)
