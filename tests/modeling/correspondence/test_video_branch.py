"""The video branch inside the model: what learns from a clip, and where a missing head comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from solotrack.config import ConfigError, load_config
from solotrack.data.loader import build_train_loader
from solotrack.engine.checkpoint import AtomicCheckpointer, CheckpointError
from tests import tiny

VIDEO = {
    **tiny.detect_everything(),
    "MODEL.SOLO_TRACK.VIDEO.ENABLED": True,
    "MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 0.0,
    "MODEL.SOLO_TRACK.VIDEO.MAX_NODES": 6,
    "MODEL.SOLO_TRACK.VIDEO.WARMUP_ITERS": 10,
    "SOLVER.CLIPS_PER_BATCH": 2,
    "DATASETS.TRAIN_CLIPS": ["tiny_test"],
}


def clips(count: int, frames: int = 2) -> list[dict]:
    rng = torch.Generator().manual_seed(count)
    size = (frames, 3, 64, 64)
    return [{"frames": list(torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)), "video": str(n)} for n in range(count)]


def build(changes: dict | None = None) -> torch.nn.Module:
    return tiny.model(tiny.config(VIDEO | (changes or {})), spread=0.3)


@pytest.mark.parametrize("nodes", ["mask_nms", "point_nms"])
@pytest.mark.parametrize("frames", [2, 3])
def test_the_gradient_reaches_backbone_and_video_head_alone(nodes: str, frames: int) -> None:
    model = build({"MODEL.SOLO_TRACK.VIDEO.NODES": nodes, "INPUT.CLIPS.FRAMES": frames}).train()
    found = model.clip_losses(clips(2, frames))
    loss, nodes = found.cycle, found.nodes
    loss.backward()
    assert found.identity is None and found.links is None, "not asked for"
    assert loss.isfinite() and loss > 0 and 1 < nodes <= 6
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"backbone", "video_branch"}
    assert model.video_branch.head.outputs[0].weight.grad.any()


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_tracking_embeddings_of_clips_are_those_that_tracking_reads(similarity: str) -> None:
    model, batch = build({"MODEL.SOLO_TRACK.EMB.SIM": similarity}).eval(), clips(2, 3)
    embeddings, nodes = model.clip_embeddings(batch)
    assert embeddings.shape[:3] == nodes.cells.shape == nodes.valid.shape == (2, 3, 6) and nodes.valid.any()
    for clip, found, cells in zip(batch, embeddings, nodes.cells, strict=True):
        for image, rows, index in zip(clip["frames"], found, cells, strict=True):
            features = model.features(model.preprocess([{"image": image}]))
            expected = model.embedding_head(features.for_embedding)[0, index].detach()
            if similarity == "cosine":
                expected = expected / expected.norm(dim=1, keepdim=True)
            torch.testing.assert_close(rows, expected)
    with torch.no_grad():
        for parameter in model.embedding_head.outputs.parameters():
            parameter.mul_(2)
    again, same = model.clip_embeddings(batch, nodes)
    assert same is nodes
    torch.testing.assert_close(again, embeddings if similarity == "cosine" else 2 * embeddings)


def test_copies_of_a_node_go_as_the_config_says() -> None:
    nodes = {
        nms: float(
            build({"MODEL.SOLO_TRACK.VIDEO.NODE_NMS": nms, "MODEL.SOLO_TRACK.VIDEO.MAX_NODES": 50}).clip_losses(clips(2), [0, 1]).nodes
        )
        for nms in (0.0, 0.5, 1.0)
    }
    assert nodes[0.0] < nodes[0.5] < nodes[1.0]


@pytest.mark.parametrize("share", [True, False])
def test_the_embedding_of_a_stage_learns_from_clips(share: bool) -> None:
    model = build({"MODEL.SOLO_TRACK.VIDEO.SHARE_HEAD": share, "MODEL.SOLO_TRACK.EMB.STAGE": "res3"}).train()
    model.clip_losses(clips(2)).cycle.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("backbone.bottom_up.res3") for name in moved)
    assert not any(name.startswith(("backbone.fpn", "backbone.bottom_up.res4")) for name in moved)
    assert any(name.startswith("embedding_head" if share else "video_branch") for name in moved)


def test_a_shared_head_learns_from_clips() -> None:
    model = build({"MODEL.SOLO_TRACK.VIDEO.SHARE_HEAD": True}).train()
    model.clip_losses(clips(2)).cycle.backward()
    assert model.embedding_head.outputs[0].weight.grad.any() and not list(model.video_branch.parameters())


@pytest.mark.parametrize(
    ("similarity", "tracker", "null_logit", "expected"),
    [
        ("cosine", {}, 6.0, 0.6),
        ("cosine", {}, float("nan"), 0.3),
        ("cosine", {"SCALE": 20.0}, 6.0, 0.3),
        ("cosine", {"METRIC": "dot"}, 0.6, 0.6),
        ("dot", {}, 6.0, 0.3),
        ("dot", {"METRIC": "cosine"}, 6.0, 0.6),
    ],
)
def test_the_dust_bin_stands_where_the_null_logit_was_calibrated(similarity, tracker, null_logit, expected) -> None:
    emb = {"MODEL.SOLO_TRACK.EMB.SIM": similarity, "MODEL.SOLO_TRACK.EMB.TEMPERATURE": 0.1}
    emb |= {f"TRACKER_HEADS.{key}": value for key, value in tracker.items()}
    values = []
    for null_sim in (None, expected, expected + 0.3):
        model = build(emb | {"MODEL.SOLO_TRACK.VIDEO.UNMATCHED": "null", "MODEL.SOLO_TRACK.VIDEO.NULL_SIM": null_sim}).train()
        model.embedding_head.null_logit.fill_(null_logit)
        values.append(model.clip_losses(clips(2)).cycle.item())
    assert values[0] == pytest.approx(values[1], rel=1e-5) and values[1] != pytest.approx(values[2], rel=1e-3)


def test_clips_leave_batch_norm_statistics_alone_and_read_them() -> None:
    model = build().train()
    before = {name: value.clone() for name, value in model.backbone.named_buffers()}
    alone = [model.clip_losses([clip]).cycle for clip in clips(2)]
    both = model.clip_losses(clips(2)).cycle
    assert all(torch.equal(before[name], value) for name, value in model.backbone.named_buffers())
    assert all(m.training for m in model.modules())
    torch.testing.assert_close(sum(alone) / 2, both, msg="a clip's loss does not depend on the batch's other clips")


def test_images_and_clips_in_one_batch() -> None:
    model = build().train()
    with EventStorage(4):
        mixed = model([*clips(2)])
        assert mixed.keys() == {"loss_cycle"}
        assert mixed["loss_cycle"].item() == pytest.approx(0.5 * model.clip_losses(clips(2)).cycle.item()), "5 of 10 iterations of warm-up"
    model = build({"MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT": 0.5})
    assert [model.video_branch.weights(i) for i in (0, 9, 1000)] == [(pytest.approx(0.1), pytest.approx(0.05)), (1.0, 0.5), (1.0, 0.5)]


@pytest.mark.parametrize(
    "changes",
    [{"MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 1.0}, {"MODEL.SOLO_TRACK.VIDEO.MAX_NODES": 1}],
    ids=["no confident node", "a single object"],
)
def test_clips_that_say_nothing_train_nothing(changes: dict) -> None:
    """The step goes on with the labelled images alone; what only clips train stays as it is."""
    model = build(changes | {"MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT": 1.0, "MODEL.SOLO_TRACK.VIDEO.PSEUDO_THRESH": 1.0}).train()
    labelled = next(iter(build_train_loader(tiny.config())))
    with EventStorage(0) as storage:
        losses = model([*labelled, *clips(2)])
        alone = model(labelled)
        assert storage.latest()["video/nodes_per_frame"][0] == changes.get("MODEL.SOLO_TRACK.VIDEO.MAX_NODES", 0)
    assert losses["loss_cycle"].item() == 0 and losses["loss_identity"].item() == 0 and losses.keys() > alone.keys()
    (losses["loss_cycle"] + losses["loss_identity"]).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and not any(g.any() for g in gradients)


PSEUDO = {
    "MODEL.SOLO_TRACK.VIDEO.PSEUDO_WEIGHT": 2.0,
    "MODEL.SOLO_TRACK.VIDEO.PSEUDO_THRESH": 0.05,
    "MODEL.SOLO_TRACK.VIDEO.NULL_SIM": -1.0,
    "MODEL.SOLO_TRACK.EMB.SIM": "cosine",
    "MODEL.SOLO_TRACK.EMB.TEMPERATURE": 0.1,
}


@pytest.mark.parametrize("frames", [2, 3])
def test_pseudo_identities_teach_the_image_head(frames: int) -> None:
    model = build(PSEUDO | {"INPUT.CLIPS.FRAMES": frames}).train()
    batch = clips(3, frames)
    with EventStorage(9):
        losses = model(batch)
    found = model.clip_losses(batch, [0, 1, 2])
    assert losses.keys() == {"loss_cycle", "loss_identity"} and found.links > 0.5
    torch.testing.assert_close(losses["loss_identity"], 2.0 * found.identity)
    before = found.identity.item()
    found.identity.backward()
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"backbone", "embedding_head"}, "what links is not moved by its own links"
    with torch.no_grad():
        for parameter in model.embedding_head.parameters():
            parameter.sub_(0.02 * parameter.grad)
        assert model.clip_losses(batch, [0, 1, 2]).identity < 0.98 * before
    assert model.clip_losses(batch).identity is None, "where nobody asks for them"


def test_clips_of_one_video_are_no_negatives_of_each_other() -> None:
    model = build(PSEUDO).train()
    batch = clips(2)
    for clip in batch:
        clip["video"] = "the same"
    with EventStorage(100):
        same = model(batch)["loss_identity"]
        torch.testing.assert_close(same, 2.0 * model.clip_losses(batch, [5, 5]).identity)
    assert same < 2.0 * model.clip_losses(batch, [0, 1]).identity


def test_a_shared_head_links_and_learns() -> None:
    model = build(PSEUDO | {"MODEL.SOLO_TRACK.VIDEO.SHARE_HEAD": True}).train()
    model.clip_losses(clips(2), [0, 1]).identity.backward()
    assert model.embedding_head.outputs[0].weight.grad.any()


def test_weights_of_images_alone_start_the_video_head(tmp_path: Path) -> None:
    images = tiny.model(tiny.config(), spread=0.3)
    AtomicCheckpointer(images, str(tmp_path)).save("images")
    model = build()
    AtomicCheckpointer(model).load_for_inference(str(tmp_path / "images.pth"))
    image_head, video_head = model.embedding_head.state_dict(), model.video_branch.head.state_dict()
    assert all(torch.equal(value, video_head[key]) for key, value in image_head.items() if "null" not in key)
    torch.nn.init.ones_(model.video_branch.head.outputs[0].bias)
    AtomicCheckpointer(model, str(tmp_path)).save("videos")
    again = build()
    AtomicCheckpointer(again).load_for_inference(str(tmp_path / "videos.pth"))
    assert (again.video_branch.head.outputs[0].bias == 1).all(), "a video head of its own is kept"
    with pytest.raises(CheckpointError, match="does not fit"):
        AtomicCheckpointer(build({"MODEL.SOLO_TRACK.VIDEO.INIT_FROM_IMAGE": False})).load_for_inference(str(tmp_path / "images.pth"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["MODEL.SOLO_TRACK.VIDEO.ENABLED", "True", "MODEL.SOLO.FREEZE", "True"], "exclude each other"),
        (["SOLVER.CLIPS_PER_BATCH", "2", "DATASETS.TRAIN_CLIPS", "['a']"], "needs MODEL.SOLO_TRACK.VIDEO.ENABLED"),
        (["MODEL.SOLO_TRACK.VIDEO.ENABLED", "True", "SOLVER.CLIPS_PER_BATCH", "2"], "needs DATASETS.TRAIN_CLIPS"),
        (["TTA.ENABLED", "True"], "needs MODEL.SOLO_TRACK.VIDEO.ENABLED"),
        (["TTA.PARTS", "['heads']"], "must name one or more of backbone, fpn and video_head"),
    ],
)
def test_keys_that_need_one_another(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        load_config("", words)
