"""SipMask-VIS: it learns to detect and to associate, gradients reach both frames, and what it gives to trackers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from solotrack.config import ConfigError
from solotrack.data.loader import build_train_loader
from solotrack.engine.comparison import TRACKERS, compare_trackers
from solotrack.modeling.meta_arch.sipmask_vis import SipMaskVIS
from solotrack.modeling.sipmask.masks import assemble_masks, box_mask_loss
from solotrack.ops.masks import box_iou
from tests import tiny

LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr", "loss_mask", "loss_track"}


@pytest.fixture(autouse=True)
def storage() -> Iterator[None]:
    with EventStorage(0):
        yield


def setup(changes: dict | None = None) -> tuple[CfgNode, SipMaskVIS, list[dict]]:
    """Config, model in training and a batch of two pairs."""
    cfg = tiny.config(tiny.sipmask() | (changes or {}))
    return cfg, tiny.model(cfg).train(), next(iter(build_train_loader(cfg)))


def test_training_and_tracking(tmp_path) -> None:
    """Two videos by heart within seconds; then boxes, masks and tracks of their frames are found, which the untrained model does not."""
    cfg, model, _ = setup({"MODEL.SIPMASK.NUM_BASES": 16, "SOLVER.IMS_PER_BATCH": 4})
    rows = {name: TRACKERS[name] for name in ("SOLO-Track", "SOLO-Track + cues")}
    before = compare_trackers(cfg, model.eval(), "tiny_test", str(tmp_path / "before"), rows)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.004)
    history = []
    for batch in islice(build_train_loader(cfg), 100):
        losses = model(batch)
        assert losses.keys() == LOSSES
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    first, last = ({name: sum(x[name] for x in part) / 5 for name in LOSSES} for part in (history[:5], history[-5:]))
    assert last["loss_track"] < 0.5 * first["loss_track"] and last["loss_mask"] < 0.7 * first["loss_mask"], (first, last)
    after = compare_trackers(cfg, model.eval(), "tiny_test", str(tmp_path / "after"), rows)
    for name in rows:
        assert after[name]["AP50"] > before[name]["AP50"] + 20, (name, before, after)


def test_divergence_is_named() -> None:
    _, model, batch = setup()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="boxes are not finite"):
        model(batch)


def gradients(only: str, changes: dict | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gradients by name of one loss, and that of the batch's images (frames, then references)."""
    _, model, batch = setup(changes)
    return tiny.gradients(model, batch, only)


def test_where_the_association_loss_acts() -> None:
    found, images = gradients("loss_track")
    assert all(x.abs().sum() > 0 for x in images), "both frames of both pairs"
    reached = {name.split(".")[1] for name, x in found.items() if name.startswith("head") and x.any()}
    assert reached == {"track_tower", "track_out"}, "where a box is, is no matter of its embedding"


def test_the_reference_teaches_nothing_but_association() -> None:
    for only in LOSSES - {"loss_track"}:
        _, images = gradients(only, {"MODEL.SMALL_RESNET.NORM": "FrozenBN"})  # BatchNorm mixes a batch's images
        assert images[:2].abs().sum() > 0 and not images[2:].any()


@pytest.mark.parametrize("name", ["MASK", "TRACK"])
def test_the_weights_of_the_losses(name: str) -> None:
    values = []
    for weight in (1.0, 3.0):
        _, model, batch = setup({f"MODEL.SIPMASK.{name}_LOSS_WEIGHT": weight})
        torch.manual_seed(0)  # the jitter
        values.append(model(batch)[f"loss_{name.lower()}"].item())
    assert values[1] == pytest.approx(3 * values[0])


def test_locations_find_objects_as_fcos_assigns_them() -> None:
    """Against Detectron2's own assignment, which tells the box but not the object."""
    _, model, batch = setup({"SOLVER.IMS_PER_BATCH": 4})
    truth = [x["instances"] for x in batch]
    truth[1] = truth[1][:0]
    anchors = model.anchor_generator([torch.zeros(1, 1, 64 // s, 64 // s) for s in (4, 8, 16)])
    index = model.match(anchors, truth)
    labels, boxes = model.label_anchors(anchors, truth)
    all_boxes, all_classes = torch.cat([x.gt_boxes.tensor for x in truth]), torch.cat([x.gt_classes for x in truth])
    positive = index >= 0
    assert torch.equal(positive, torch.stack(labels) != 4) and positive.sum() > 20 and not positive[1].any()
    assert torch.equal(all_classes[index[positive]], torch.stack(labels)[positive])
    assert torch.equal(all_boxes[index[positive]], torch.stack(boxes)[positive])


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_reference_boxes_are_jittered(jitter: float, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, batch = setup({"MODEL.SIPMASK.TRACK_JITTER": jitter})
    read = []
    original = SipMaskVIS._track_loss.__globals__["read_points"]
    monkeypatch.setitem(SipMaskVIS._track_loss.__globals__, "read_points", lambda *args: read.append(args) or original(*args))
    model(batch)
    _, image, points, stride = read[1]
    boxes = Boxes.cat([x["reference"]["instances"].gt_boxes for x in batch])
    counts = [len(x["reference"]["instances"]) for x in batch]
    assert image.tolist() == [0] * counts[0] + [1] * counts[1] and stride == 4
    shift = (points - boxes.get_centers()) / (boxes.tensor[:, 2:] - boxes.tensor[:, :2])
    assert (shift.abs() <= jitter + 1e-5).all() and (jitter == 0 or shift.abs().max() > 0.2)


@pytest.mark.parametrize("where", ["frame", "reference", "both", "one frame"])
def test_frames_without_objects(where: str) -> None:
    _, model, batch = setup()
    for pair in batch[: 1 if where == "one frame" else 2]:
        if where != "reference":
            pair["instances"] = pair["instances"][:0]
        if where in ("reference", "both"):
            pair["reference"]["instances"] = pair["reference"]["instances"][:0]
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert (losses["loss_track"].item() == 0) == (where != "one frame")
    assert (losses["loss_mask"].item() == 0) == (where in ("frame", "both"))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.head.parameters()), "DistributedDataParallel waits for them"


def test_a_location_learns_the_mask_of_its_object() -> None:
    """One positive location after the other, each with its own coefficients and the object that it is to find."""
    _, model, batch = setup({"SOLVER.IMS_PER_BATCH": 4})
    torch.nn.init.normal_(model.head.coefficient_out.weight, std=0.3)
    loss = model(batch)["loss_mask"].item()
    images = model.preprocess_image([*batch, *(pair["reference"] for pair in batch)])  # BatchNorm mixes them
    features = [model.backbone(images.tensor)[name][:4] for name in ("p2", "p3", "p4")]
    predictions, truth = model.head(features), [pair["instances"] for pair in batch]
    objects = [x.gt_boxes for x in truth], [x.gt_masks for x in truth]
    index = model.match(model.anchor_generator(features), truth)
    terms = [
        box_mask_loss(predictions.basis, predictions.coefficients[n, r][None], index[n, r][None], *objects, stride=4, resolution=8).item()
        for n, r in (index >= 0).nonzero().tolist()
    ]
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-4) and max(terms) > 1.2 * min(terms)


def test_detection_losses_are_detectron2s() -> None:
    """But for the divisor, the number of positive locations + 1 instead of a moving average."""
    _, model, batch = setup()
    features = [model.backbone(model.preprocess_image(batch).tensor)[name] for name in ("p2", "p3", "p4")]
    predictions, anchors = model.head(features), model.anchor_generator(features)
    labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
    count = int((torch.stack(labels) != 4).sum()) + 1
    model.loss_normalizer = 300.0
    expected = FCOS.losses(model, anchors, [predictions.logits], labels, [predictions.deltas], boxes, [predictions.centerness])
    losses = model.detection_losses(anchors, predictions, torch.stack(labels), torch.stack(boxes))
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert count > 20 and (loss * count).item() == pytest.approx((expected[name] * model.loss_normalizer).item(), rel=1e-5), name


def detections(changes: dict | None = None) -> tuple[SipMaskVIS, list[dict]]:
    """A model whose outputs are of some size, with every threshold at 0, and two inputs for frames of another size."""
    _, model, batch = setup({"MODEL.SIPMASK.SCORE_THRESH": 0.0} | (changes or {}))
    generator = torch.Generator().manual_seed(0)
    for conv in (model.head.class_out, model.head.box_out, model.head.coefficient_out, model.head.track_out):
        conv.weight.data.copy_(0.3 * torch.randn(conv.weight.shape, generator=generator))  # the same in either memory format
    return model.eval(), [{"image": x["image"][:, :50], "height": 100, "width": 90} for x in batch]


@pytest.mark.parametrize("candidates", [1000, 12])
@torch.no_grad()
def test_detections_by_hand(candidates: int) -> None:
    """One location at a time: score, box, embedding; then what fast NMS leaves of the best of them, and their masks."""
    model, inputs = detections({"MODEL.SIPMASK.NMS_PRE": candidates})
    out = [x["instances"] for x in model(inputs)]
    tensor = model.preprocess_image(inputs).tensor
    features = [model.backbone(tensor)[name] for name in ("p2", "p3", "p4")]
    raw, maps = model.head(features), model.head.track_map(features)
    centers = [((j + 0.5) * s, (i + 0.5) * s, s) for s in (4, 8, 16) for i in range(64 // s) for j in range(64 // s)]
    for n, found in enumerate(out):
        count = len(found)
        assert count == 10 if candidates == 1000 else 2 <= count < 10
        assert found.image_size == (100, 90) and found.pred_masks.shape == (count, 100, 90)
        assert found.pred_masks.dtype == torch.bool and found.embeddings.shape == (count, 32)
        pairs = []
        outputs = zip(centers, raw.logits[n], raw.deltas[n], raw.centerness[n], strict=True)
        for location, ((x, y, stride), logits, deltas, centerness) in enumerate(outputs):
            left, top, right, bottom = (deltas.clamp(min=0) * stride).tolist()
            box = [max(x - left, 0), max(y - top, 0), min(x + right, 64), min(y + bottom, 50)]
            pairs += [(float(logits[c].sigmoid() * centerness.sigmoid()), c, box, location) for c in range(4)]
        pairs.sort(key=lambda pair: -pair[0])
        pairs = [pair for pair in pairs[:candidates] if pair[2][2] > pair[2][0] and pair[2][3] > pair[2][1]]
        kept = []
        for score, c, box, location in pairs:
            better = [other for s, k, other, _ in pairs if s > score and k == c]
            if not better or box_iou(torch.tensor(better), torch.tensor([box])).max() <= 0.5:
                kept.append((score, c, box, location))
            if len(kept) == 10:
                break
        scores, classes, boxes, locations = zip(*kept, strict=True)
        torch.testing.assert_close(found.scores, torch.tensor(scores))
        assert found.pred_classes.tolist() == list(classes)
        boxes = torch.tensor(boxes)
        torch.testing.assert_close(found.pred_boxes.tensor, boxes * torch.tensor([90 / 64, 2.0] * 2), rtol=1e-4, atol=1e-3)
        places = ((boxes[:, :2] + boxes[:, 2:]) / 64 - 1)[None, None]  # from -1 to 1 over the padded image of 64 x 64
        expected = torch.nn.functional.grid_sample(maps[n : n + 1], places, padding_mode="border", align_corners=False)[0, :, 0].T
        torch.testing.assert_close(found.embeddings, expected, rtol=1e-3, atol=1e-4)
        outside = found.pred_masks.clone()
        for mask, (x1, y1, x2, y2) in zip(outside, found.pred_boxes.tensor.tolist(), strict=True):
            mask[max(int(y1) - 1, 0) : int(y2) + 2, max(int(x1) - 1, 0) : int(x2) + 2] = False
        assert found.pred_masks.any() and not outside.any()
        soft = assemble_masks(raw.basis[n], raw.coefficients[n, list(locations)], boxes, 4)[None, :, :50]  # the image's part of 64 x 64
        masks = torch.nn.functional.interpolate(soft, size=(100, 90), mode="bilinear", align_corners=False)[0] > 0.5
        assert (found.pred_masks != masks).float().mean() < 1e-3, "but for pixels at the threshold"


@torch.no_grad()
def test_thresholds_and_limits() -> None:
    model, inputs = detections({"TEST.DETECTIONS_PER_IMAGE": 3})
    few = model(inputs)[0]["instances"]
    assert len(few) == 3 and (few.scores.diff() <= 0).all()
    threshold = few.scores[1].item()
    model.test_score_thresh = threshold
    (one, *_) = model(inputs)
    assert one["instances"].scores.tolist() == [few.scores[0].item()]
    model.test_score_thresh = 1.0
    for x in model(inputs):
        none = x["instances"]
        assert len(none) == 0 and none.pred_masks.shape == (0, 100, 90) and none.embeddings.shape == (0, 32)


def test_memory_format_changes_no_result() -> None:
    results = []
    for channels_last in (False, True):
        model, inputs = detections({"MODEL.CHANNELS_LAST": channels_last})
        with torch.no_grad():
            results.append(model(inputs)[0]["instances"])
    torch.testing.assert_close(results[0].scores, results[1].scores, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(results[0].embeddings, results[1].embeddings, rtol=1e-3, atol=1e-4)


def test_trackers_get_float32_in_mixed_precision() -> None:
    model, inputs = detections()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(inputs)[0]["instances"]
    assert {found.embeddings.dtype, found.scores.dtype, found.pred_boxes.tensor.dtype} == {torch.float32}
    assert len(found) == 10 and found.pred_masks.any()


def test_features_that_are_read() -> None:
    _, model, _ = setup()
    assert model.in_features == {"p2", "p3", "p4"}
    with pytest.raises(ConfigError, match=r"IN_FEATURES names p7, which the backbone does not have; it has p2, p3, p4, p5, p6"):
        setup({"MODEL.SIPMASK.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"]})


def test_full_size_levels() -> None:
    """FCOS's five levels with Detectron2's own backbone for them."""
    names = ["p3", "p4", "p5", "p6", "p7"]
    changes = {
        **{"MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"]},
        **{"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.SIPMASK.IN_FEATURES": names},
    }
    _, model, batch = setup(changes)
    assert model.in_features == set(names) == set(model.backbone.output_shape()) and model.stride == 8
    sum(model(batch).values()).backward()
    with torch.no_grad():
        assert model.eval()([{"image": batch[0]["image"]}])[0]["instances"].image_size == (64, 64)
