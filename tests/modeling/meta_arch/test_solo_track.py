"""The whole network: losses and gradients in training, and what comes out of it otherwise."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

from solotrack.config import ConfigError
from solotrack.modeling.meta_arch.solo_track import SOLOTrack
from solotrack.modeling.solo.inference import embedding_cells
from solotrack.ops.masks import masks_to_boxes
from tests import tiny

ALL_LEVELS = {
    "MODEL.SOLO.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.SOLO.STRIDES": [4, 4, 8, 16, 16],
    "MODEL.SOLO.NUM_GRIDS": [8, 6, 4, 3, 2],
    "MODEL.SOLO.SCALE_RANGES": [[1, 16], [8, 24], [16, 32], [24, 48], [32, 256]],
}
TWO_VIEWS = {"MODEL.SOLO_TRACK.EMB.VIEWS": 2}
NO_EMBEDDING = {"MODEL.SOLO_TRACK.EMB.ENABLED": False, "TRACKER_HEADS.TRACKER_NAME": "IoUTracker"}
LOSSES = {"loss_category", "loss_mask", "loss_center", "loss_contrast", "loss_me"}


@pytest.fixture(autouse=True)
def iteration() -> Iterator[None]:
    with EventStorage(5):  # beyond ME.START_ITER
        yield


def truth(masks: torch.Tensor, classes: list[int] | None = None) -> Instances:
    """Ground truth of (M, H, W) bool masks."""
    instances = Instances(tuple(masks.shape[1:]))
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = Boxes(masks_to_boxes(masks))
    instances.gt_classes = torch.tensor(classes if classes is not None else [i % 4 for i in range(len(masks))], dtype=torch.int64)
    instances.gt_ids = torch.arange(len(masks))
    return instances


def boxes(count: int, height: int, width: int, seed: int, largest: int = 30) -> torch.Tensor:
    """(count, H, W) random filled boxes of all sizes."""
    rng = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        h, w = (int(torch.randint(5, largest, (1,), generator=rng)) for _ in range(2))
        y, x = int(torch.randint(0, height - h + 1, (1,), generator=rng)), int(torch.randint(0, width - w + 1, (1,), generator=rng))
        mask[y : y + h, x : x + w] = True
    return masks


def sample(count: int = 6, height: int = 64, width: int = 64, seed: int = 0, views: int = 1) -> dict:
    """A mapped image."""
    rng = torch.Generator().manual_seed(seed)
    pictures = [
        {
            "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=rng),
            "instances": truth(boxes(count, height, width, seed + view)),
        }
        for view in range(views)
    ]
    return pictures[0] | {"file_name": f"{seed}.jpg"} | ({"second_view": pictures[1]} if views == 2 else {})


def train_once(model: SOLOTrack, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Losses of one step, gradients left in the parameters."""
    model.train()
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    return losses


def without_gradient(model: SOLOTrack) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())}


# ---- training


@pytest.mark.parametrize("changes", [{}, TWO_VIEWS, {"MODEL.SOLO.TYPE": "decoupled"}], ids=["one view", "two views", "decoupled"])
def test_losses_and_gradients(changes: dict) -> None:
    model = tiny.model(tiny.config(ALL_LEVELS | changes))
    batch = [sample(seed=seed, views=model.views) for seed in (1, 2)]
    losses = train_once(model, batch)
    assert losses.keys() == LOSSES
    assert all(loss.isfinite() and loss.dim() == 0 for loss in losses.values()) and losses["loss_contrast"] > 0
    assert not without_gradient(model)
    moved = {name for name, p in model.named_parameters() if (p.grad != 0).any()}
    still = {name for name, p in model.named_parameters()} - moved
    assert all("mask_out" in name or "fpn" in name for name in still), f"only levels without an instance may rest: {still}"


def test_an_fpn_output_that_is_not_read_is_all_that_gets_no_gradient() -> None:
    model = tiny.model(tiny.config())
    train_once(model, [sample(seed=1)])
    assert without_gradient(model) == {"backbone.fpn_output5.weight", "backbone.fpn_output5.bias"}


def test_two_views_are_two_images_of_the_detector() -> None:
    """The detector's losses are those of both views as images of their own."""
    cfg = tiny.config(TWO_VIEWS)
    model = tiny.model(cfg).train()
    batch = [sample(seed=seed, views=2) for seed in (1, 2)]
    losses = model(batch)
    single = tiny.model(tiny.config()).train()
    expected = single([{"image": x["image"], "instances": x["instances"]} for x in [*batch, *(x["second_view"] for x in batch)]])
    for name in ("loss_category", "loss_mask"):
        torch.testing.assert_close(losses[name], expected[name])
    assert losses["loss_contrast"] != expected["loss_contrast"], "the positive is in the other view"


def test_loss_weights() -> None:
    plain = tiny.model(tiny.config()).train()([sample(seed=1)])
    changes = {"MODEL.SOLO.CATE_LOSS_WEIGHT": 2.0, "MODEL.SOLO.MASK_LOSS_WEIGHT": 1.5, "MODEL.SOLO_TRACK.EMB.LOSS_WEIGHT": 4.0}
    weighted = tiny.model(tiny.config(changes)).train()([sample(seed=1)])
    factors = {"loss_category": 2.0, "loss_mask": 0.5, "loss_center": 4.0, "loss_contrast": 4.0, "loss_me": 4.0}
    for name, factor in factors.items():
        torch.testing.assert_close(weighted[name], factor * plain[name])


def test_maximum_entropy_starts_late() -> None:
    model = tiny.model(tiny.config({"MODEL.SOLO_TRACK.ME.START_ITER": 6})).train()
    assert "loss_me" not in model([sample()])
    with EventStorage(6):
        assert "loss_me" in model([sample()])


def test_without_an_embedding_head() -> None:
    model = tiny.model(tiny.config(ALL_LEVELS | NO_EMBEDDING))
    assert train_once(model, [sample()]).keys() == {"loss_category", "loss_mask"}
    assert not without_gradient(model) and not any("embedding" in name for name in model.state_dict())
    model = tiny.model(tiny.config(tiny.detect_everything() | NO_EMBEDDING), spread=0.3).eval()
    (output,) = model([sample()])
    assert len(output["instances"]) > 0 and not output["instances"].has("embeddings")


@pytest.mark.parametrize("changes", [{}, TWO_VIEWS], ids=["one view", "two views"])
def test_images_without_instances(changes: dict) -> None:
    """A batch without any, one beside images with, and instances that no cell takes: finite losses and zero gradients, not none."""
    model = tiny.model(tiny.config(ALL_LEVELS | changes))
    views = model.views
    empty = [sample(0, seed=seed, views=views) for seed in (1, 2)]
    losses = train_once(model, empty)
    assert losses.keys() == LOSSES and all(loss.isfinite() for loss in losses.values())
    assert losses["loss_category"] > 0, "background is learned all the same"
    assert all(losses[name] == 0 for name in LOSSES - {"loss_category"})
    assert not without_gradient(model)
    assert all((p.grad == 0).all() for p in model.embedding_head.parameters())

    losses = train_once(model, [empty[0], sample(seed=3, views=views)])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] > 0
    assert not without_gradient(model)

    out_of_range = tiny.model(tiny.config(ALL_LEVELS | changes | {"MODEL.SOLO.SCALE_RANGES": [[200, 300]] * 5}))
    losses = train_once(out_of_range, [sample(seed=seed, views=views) for seed in (1, 2)])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] == 0
    assert not without_gradient(out_of_range)


def test_an_instance_in_one_view_only() -> None:
    model = tiny.model(tiny.config(TWO_VIEWS))
    pair = sample(4, seed=1, views=2)
    pair["second_view"]["instances"] = pair["second_view"]["instances"][torch.tensor([2])]
    losses = train_once(model, [pair])
    assert all(loss.isfinite() for loss in losses.values())


def test_five_hundred_instances() -> None:
    model = tiny.model(tiny.config())
    crowd = sample(0) | {"instances": truth(boxes(500, 64, 64, seed=0, largest=9))}
    losses = train_once(model, [crowd])
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_contrast"] > 0
    assert without_gradient(model) == {"backbone.fpn_output5.weight", "backbone.fpn_output5.bias"}


@pytest.mark.parametrize("stage", ["", "res3"])
def test_frozen_detector(stage: str) -> None:
    """Only the embedding head has gradients and losses, and BatchNorm's statistics rest."""
    model = tiny.model(tiny.config({"MODEL.SOLO.FREEZE": True, "MODEL.SOLO_TRACK.EMB.STAGE": stage}))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train_once(model, [sample()])
    assert losses.keys() == LOSSES - {"loss_category", "loss_mask"}
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("embedding_head.")}
    assert not tiny.difference(before, model.state_dict())
    assert model.training and model.embedding_head.training and not model.backbone.training
    model.eval()
    assert not model.embedding_head.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    batch = [sample(seed=1), sample(seed=2)]
    exact = train_once(tiny.model(tiny.config()), batch)
    model = tiny.model(tiny.config())
    with torch.autocast("cpu", dtype=dtype):
        losses = train_once(model, batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.02)


def test_channels_last_changes_nothing() -> None:
    batch = [sample(seed=1), sample(seed=2, height=48)]
    plain, last = (tiny.model(tiny.config({"MODEL.CHANNELS_LAST": flag})).train()(batch) for flag in (False, True))
    for name in plain:
        torch.testing.assert_close(plain[name], last[name], rtol=1e-4, atol=1e-5)


def test_polygons_are_refused_with_the_remedy() -> None:
    from detectron2.structures import PolygonMasks

    x = sample(1)
    x["instances"].gt_masks = PolygonMasks([[torch.tensor([1.0, 1, 9, 1, 9, 9]).numpy()]])
    with pytest.raises(TypeError, match=r"set INPUT\.MASK_FORMAT to 'bitmask'"):
        tiny.model(tiny.config()).train()([x])


# ---- inference


def detector(changes: dict | None = None) -> SOLOTrack:
    return tiny.model(tiny.config(tiny.detect_everything() | (changes or {})), spread=0.3).eval()


@torch.no_grad()
def test_fields() -> None:
    x = {"image": sample(height=64, width=96)["image"], "height": 100, "width": 150}
    instances = detector()([x])[0]["instances"]
    n = len(instances)
    assert n > 3 and instances.image_size == (100, 150)
    assert instances.pred_masks.shape == (n, 100, 150) and instances.pred_masks.dtype == torch.bool
    assert instances.pred_masks.flatten(1).any(dim=1).all()
    torch.testing.assert_close(instances.pred_boxes.tensor, masks_to_boxes(instances.pred_masks))
    assert instances.scores.shape == (n,) and (instances.scores.diff() <= 0).all() and (instances.scores > 0).all()
    assert instances.pred_classes.dtype == torch.int64 and instances.pred_classes.max() < 4
    assert instances.cell_indices.dtype == torch.int64 and instances.cell_indices.max() < 8 * 8 + 6 * 6 + 4 * 4
    assert instances.embeddings.shape == (n, 8) and instances.embeddings.dtype == torch.float32


@torch.no_grad()
def test_size_of_the_output_is_the_image_s_where_no_other_is_given() -> None:
    assert detector()([{"image": sample(height=40, width=56)["image"]}])[0]["instances"].image_size == (40, 56)


@torch.no_grad()
def test_an_embedding_is_that_of_the_cell_that_made_the_detection() -> None:
    """Through every filter and sort: the head's output is replaced by the cells' own numbers."""
    model = detector()
    numbers = torch.arange(8 * 8 + 6 * 6 + 4 * 4, dtype=torch.float32)
    model.embedding_head.forward = lambda features: torch.stack([numbers, -numbers], dim=1).expand(len(features[0]), -1, 2)
    for output in model([{"image": sample(seed=seed)["image"]} for seed in range(3)]):
        instances = output["instances"]
        assert len(instances) > 3
        assert instances.embeddings[:, 0].long().tolist() == instances.cell_indices.tolist()
        assert (instances.embeddings[:, 1] == -instances.embeddings[:, 0]).all()


@torch.no_grad()
@pytest.mark.parametrize("mode,stage", [("cell", ""), ("cell", "res3"), ("center_region", ""), ("cluster", ""), ("cluster", "res2")])
def test_embeddings_are_means_over_the_cells_of_each_way_to_read(mode: str, stage: str) -> None:
    model = detector({"MODEL.SOLO_TRACK.EMB_READ": mode, "MODEL.SOLO_TRACK.EMB.STAGE": stage})
    x = {"image": sample(height=48, width=64)["image"], "height": 96, "width": 128}
    instances = model([x])[0]["instances"]
    images = model.preprocess([x])
    padded = tuple(images.tensor.shape[-2:])
    cells, valid = embedding_cells(
        mode, instances, image_size=(48, 64), padded_size=padded, num_grids=(8, 6, 4), scale_ranges=model.scale_ranges, sigma=0.2
    )
    of_cells = model.embedding_head(model.features(images).for_embedding)[0]
    expected = torch.stack([of_cells[row[ok]].mean(dim=0) for row, ok in zip(cells, valid, strict=True)])
    torch.testing.assert_close(instances.embeddings, expected)
    assert mode == "cell" or valid.sum(dim=1).max() > 1
    plain = detector({"MODEL.SOLO_TRACK.EMB.STAGE": stage})([x])[0]["instances"]
    assert (plain.cell_indices == instances.cell_indices).all() and (plain.scores == instances.scores).all()


LOCAL = {"MODEL.SOLO_TRACK.EMB.STAGE": "res2", "MODEL.SOLO_TRACK.EMB.KERNEL_SIZE": 1, "MODEL.SOLO.NORM": ""}


@torch.no_grad()
def test_an_embedding_of_an_early_stage_does_not_see_the_whole_image() -> None:
    """Stem (7x7, stride 2), pooling (3x3, stride 2) and two 3x3 convolutions at a stride of 4 see 27 pixels, the resizing 4 more."""
    model = tiny.model(tiny.config(LOCAL), spread=0.3).eval()
    image = sample()["image"]
    there = image.clone()
    there[:, :, 34:] = torch.randint(0, 256, there[:, :, 34:].shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    one, two = (
        model.embedding_head(model.features(model.preprocess([{"image": x}])).for_embedding)[0, :64].view(8, 8, -1) for x in (image, there)
    )
    changed = (one != two).any(dim=2)  # (8, 8) cells of the first level, 8 pixels each
    assert not changed[:, :3].any() and changed[:, 3:].all(), "column i sees pixels 8i - 13 to 8i + 17"
    far = tiny.model(tiny.config({"MODEL.SOLO.NORM": ""}), spread=0.3).eval()
    one, two = (far.embedding_head(far.features(far.preprocess([{"image": x}])).for_embedding)[0, :64] for x in (image, there))
    assert (one != two).any(dim=1).all(), "FPN's levels see all of so small an image"


def test_an_embedding_of_a_stage_learns_past_fpn() -> None:
    model = tiny.model(tiny.config(LOCAL), spread=0.3).train()
    losses = model([sample(seed=1), sample(seed=2)])
    assert losses.keys() == LOSSES
    sum(losses[name] for name in ("loss_center", "loss_contrast", "loss_me")).backward()
    moved = {name.rpartition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("backbone.bottom_up.res2") for name in moved)
    assert not any(name.startswith(("backbone.fpn", "backbone.bottom_up.res3", "head.")) for name in moved)


def test_a_stage_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"EMB\.STAGE is 'res7', no stage of the bottom-up network; it has res2, res3, res4, res5"):
        tiny.model(tiny.config({"MODEL.SOLO_TRACK.EMB.STAGE": "res7"}))


@torch.no_grad()
def test_a_batch_gives_what_its_images_give_at_the_same_padding() -> None:
    model = detector()
    sizes = [(64, 64), (40, 64), (64, 50)]
    batch = [{"image": sample(height=h, width=w, seed=h + w)["image"], "height": 2 * h, "width": w} for h, w in sizes]
    together = model(batch)
    images = model.preprocess(batch)
    assert images.image_sizes == sizes and images.tensor.shape == (3, 3, 64, 64)
    for index, x in enumerate(batch):
        model.preprocess = lambda inputs, i=index: ImageList(images.tensor[i : i + 1], [images.image_sizes[i]])
        (alone,) = model([x])
        one, many = alone["instances"], together[index]["instances"]
        assert len(one) > 3 and one.image_size == (2 * sizes[index][0], sizes[index][1])
        assert one.cell_indices.tolist() == many.cell_indices.tolist()
        torch.testing.assert_close(one.scores, many.scores)
        torch.testing.assert_close(one.embeddings, many.embeddings)
        assert (one.pred_masks != many.pred_masks).float().mean() < 1e-3  # a pixel on the threshold may fall either way


@torch.no_grad()
def test_padding_is_the_mean_colour() -> None:
    model = detector()
    images = model.preprocess([{"image": torch.full((3, 33, 64), 255, dtype=torch.uint8)}, {"image": sample()["image"]}])
    assert images.tensor.shape == (2, 3, 64, 64)
    assert (images.tensor[0, :, 33:] == 0).all()
    expected = (255 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(images.tensor[0, :, :33], expected[:, None, None].expand(3, 33, 64))


@torch.no_grad()
def test_nothing_found() -> None:
    model = tiny.model(tiny.config()).eval()  # fresh weights have scores of 0.01
    instances = model([{"image": sample()["image"]}])[0]["instances"]
    assert len(instances) == 0 and instances.pred_masks.shape == (0, 64, 64) and instances.embeddings.shape == (0, 8)


# ---- building


def test_resnet18_of_detectron2_trains_and_detects() -> None:
    changes = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.SOLO.SCORE_THRESH": 0.0,
        "MODEL.SOLO.MASK_THRESH": 0.001,  # below what masks start at
    }
    model = tiny.model(tiny.config(ALL_LEVELS | tiny.detect_everything() | changes))
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.01)
    batch = [sample(seed=1), sample(seed=2)]
    before = sum(train_once(model, batch).values()).item()
    assert not without_gradient(model)
    optimizer.step()
    assert sum(model(batch).values()).item() < before
    with torch.no_grad():
        assert len(model.eval()([{"image": batch[0]["image"]}])[0]["instances"]) > 0


def test_configs_that_cannot_be_built() -> None:
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.NAME is 'build_resnet19', which is no registered backbone"):
        tiny.model(tiny.config({"MODEL.BACKBONE.NAME": "build_resnet19"}))
    with pytest.raises(ConfigError, match=r"IN_FEATURES names p9, which the backbone does not have; it has p2, p3, p4, p5, p6"):
        tiny.model(tiny.config({"MODEL.SOLO.IN_FEATURES": ["p2", "p3", "p9"]}))
