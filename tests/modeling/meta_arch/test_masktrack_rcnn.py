"""MaskTrack R-CNN: it learns to associate, gradients reach both frames, and what it gives to trackers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from solotrack.data.loader import build_train_loader
from solotrack.modeling.meta_arch.masktrack_rcnn import MaskTrackRCNN
from solotrack.tracking import build_tracker
from tests import tiny

LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_track"}


@pytest.fixture(autouse=True)
def storage() -> Iterator[None]:
    with EventStorage(0):
        yield


def setup(changes: dict | None = None) -> tuple[CfgNode, MaskTrackRCNN, list[dict]]:
    """Config, model in training and a batch of two pairs."""
    cfg = tiny.config(tiny.masktrack() | (changes or {}))
    return cfg, tiny.model(cfg).train(), next(iter(build_train_loader(cfg)))


def test_association_is_learned() -> None:
    """Two pairs by heart in 40 steps; then the tracker finds the objects of one frame in the other."""
    cfg, model, batch = setup()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    history = []
    for _ in range(40):
        losses = model(batch)
        assert losses.keys() == LOSSES
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    first, last = ({name: sum(x[name] for x in part) / 5 for name in LOSSES} for part in (history[:5], history[-5:]))
    assert last["loss_track"] < 0.5 * first["loss_track"], (first, last)
    assert sum(last.values()) < 0.7 * sum(first.values())

    model.eval()
    tracker = build_tracker(cfg)
    tracker._score_thresh = 0.0
    right = total = 0
    for pair in batch:
        tracker.reset()
        names = {}
        for sample, ids in ((pair["reference"], None), (pair, names)):
            found = sample["instances"]
            boxes, known = found.gt_boxes, found.gt_ids.tolist()
            with torch.no_grad():
                (result,) = model.inference([sample], [_given(found.image_size, boxes, found.gt_classes)])
            result = result["instances"]
            result.scores = torch.linspace(0.9, 0.8, len(result))
            result.cell_indices = torch.arange(len(result))
            result = tracker.update(result)
            for identity, index in zip(result.ID.tolist(), result.cell_indices.tolist(), strict=True):
                if ids is None:
                    names[known[index]] = identity
                elif known[index] in names:
                    total += 1
                    right += names[known[index]] == identity
    assert total >= 4 and right >= 0.75 * total, (right, total)


def _given(size: tuple[int, int], boxes: Boxes, classes: torch.Tensor) -> Instances:
    return Instances(size, pred_boxes=boxes.clone(), pred_classes=classes.clone())


def gradients(only: str, changes: dict | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Gradients by name of one loss, and that of the batch's images (frames, then references)."""
    _, model, batch = setup(changes)
    return tiny.gradients(model, batch, only)


def test_where_the_association_loss_acts() -> None:
    found, images = gradients("loss_track")
    assert all(x.abs().sum() > 0 for x in images), "both frames of both pairs"
    assert any(x.abs().sum() > 0 for name, x in found.items() if name.startswith("backbone"))
    assert any(x.abs().sum() > 0 for name, x in found.items() if name.startswith("track_head"))
    assert not any(x.abs().sum() > 0 for name, x in found.items() if name.startswith(("roi_heads", "proposal_generator")))


def test_the_reference_teaches_nothing_but_association() -> None:
    for only in ("loss_rpn_cls", "loss_cls", "loss_mask"):
        _, images = gradients(only, {"MODEL.SMALL_RESNET.NORM": "FrozenBN"})  # BatchNorm mixes a batch's images
        assert images[:2].abs().sum() > 0 and not images[2:].any()


def test_the_weight_of_the_loss() -> None:
    values = []
    for weight in (1.0, 3.0):
        _, model, batch = setup({"MODEL.TRACK_HEAD.LOSS_WEIGHT": weight})
        torch.manual_seed(0)  # the sample of proposals
        values.append(model(batch)["loss_track"].item())
    assert values[1] == pytest.approx(3 * values[0])


@pytest.mark.parametrize("where", ["frame", "reference", "both"])
def test_frames_without_objects(where: str) -> None:
    _, model, batch = setup()
    for pair in batch:
        if where in ("frame", "both"):
            pair["instances"] = pair["instances"][:0]
        if where in ("reference", "both"):
            pair["reference"]["instances"] = pair["reference"]["instances"][:0]
    losses = model(batch)
    assert losses["loss_track"].item() == 0 and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.track_head.parameters()), "DistributedDataParallel waits for them"


def test_embeddings_are_those_of_the_final_boxes() -> None:
    _, model, batch = setup()
    model.eval()
    inputs = [{"image": x["image"], "height": 100, "width": 90} for x in batch]
    with torch.no_grad():
        raw = model.inference(inputs, do_postprocess=False)
        boxes = [Boxes(x.pred_boxes.tensor.clone()) for x in raw]
        features = model.backbone(model.preprocess_image(inputs).tensor)
        expected = model.track_head(features, boxes)
        out = [x["instances"] for x in model(inputs)]
    torch.testing.assert_close(torch.cat([x.embeddings for x in raw]), expected)
    torch.testing.assert_close(torch.cat([x.embeddings for x in out]), expected)
    for one, box in zip(out, boxes, strict=True):
        assert one.image_size == (100, 90) and one.pred_masks.shape[1:] == (100, 90) and one.pred_masks.dtype == torch.bool
        torch.testing.assert_close(one.pred_boxes.tensor, box.tensor * torch.tensor([90 / 64, 100 / 64] * 2))
        assert one.embeddings.shape == (len(one), 256) and len(one) <= 10


@pytest.mark.parametrize("training", [True, False])
def test_boxes_are_not_rounded_in_bfloat16(training: bool) -> None:
    _, model, batch = setup()
    read = []
    for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler, model.track_head.pooler):
        pooler.register_forward_pre_hook(lambda _, inputs: read.append({x.dtype for x in inputs[0]}))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        features = model.backbone(model.preprocess_image(batch).tensor)
        model.train(training)(batch if training else [{"image": x["image"]} for x in batch])
    assert {x.dtype for x in features.values()} == {torch.bfloat16}
    assert len(read) >= 3 and all(dtypes == {torch.float32} for dtypes in read)


def test_memory_format_changes_no_result() -> None:
    results = []
    for channels_last in (False, True):
        _, model, batch = setup({"MODEL.CHANNELS_LAST": channels_last})
        with torch.no_grad():
            results.append(model.eval()([{"image": batch[0]["image"]}])[0]["instances"])
    assert len(results[0]) == len(results[1]) > 0
    torch.testing.assert_close(results[0].embeddings, results[1].embeddings, rtol=1e-3, atol=1e-5)


def test_features_that_are_read() -> None:
    _, model, _ = setup()
    assert model.in_features == {"p2", "p3", "p4"}
