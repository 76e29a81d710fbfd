"""Test-time adaptation: what moves, and that it is undone whatever happens (METHOD 4, T11)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from solotrack.config import ConfigError
from solotrack.data.clip_mapper import sample_clips
from solotrack.data.frames import FrameError, open_frames
from solotrack.engine.streaming import VideoTracker
from solotrack.modeling.correspondence.video_branch import ClipNodes
from tests import tiny
from tests.videos import write_video

SIDE, LENGTH = 64, 7
ADAPT = {
    **tiny.detect_everything(),
    "MODEL.SOLO_TRACK.VIDEO.ENABLED": True,
    "MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 0.0,
    "MODEL.SOLO_TRACK.VIDEO.MAX_NODES": 6,
    "TTA.ENABLED": True,
    "TTA.LR": 0.1,
    "TTA.ITERS": 3,
    "TTA.CLIPS_PER_STEP": 2,
}


def video(length: int = LENGTH) -> list[np.ndarray]:
    return list(np.random.default_rng(length).integers(0, 256, (length, SIDE, SIDE, 3), dtype=np.uint8))


def tracker(changes: dict | None = None) -> VideoTracker:
    cfg = tiny.config(ADAPT | (changes or {}))
    return VideoTracker.from_config(cfg, tiny.model(cfg, spread=0.3)).eval()


def weights(tracker: VideoTracker) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tracker.model.state_dict().items() if "null_logit" not in name}


def changed(before: dict[str, torch.Tensor], tracker: VideoTracker) -> set[str]:
    """Parts of the model with a weight that is another."""
    after = weights(tracker)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    return {"fpn" if name.startswith("backbone.fpn") else name.partition(".")[0] for name in moved}


def without(changes: dict | None = None) -> list[dict]:
    return tracker({"TTA.ENABLED": False} | (changes or {})).track(video())


@pytest.mark.parametrize("mode", ["video", "online", "continual"])
def test_a_rate_of_zero_changes_nothing(mode: str) -> None:
    still = tracker({"TTA.LR": 0.0, "TTA.MODE": mode, "TEST.FRAMES_PER_BATCH": 1})
    before = weights(still)
    assert still.track(video()) == without({"TEST.FRAMES_PER_BATCH": 1})
    assert not changed(before, still) and len(still.adaptation.report.losses) == 3 and still.adaptation.report.change == 0


@pytest.mark.parametrize("mode", ["video", "online"])
def test_it_moves_the_model_and_puts_it_back(mode: str) -> None:
    adapted = tracker({"TTA.MODE": mode})
    before = weights(adapted)
    seen = []
    detections = adapted.detect(video())
    for number, _ in enumerate(detections):
        if number == LENGTH - 2:
            seen.append(changed(before, adapted))
    assert seen == [{"backbone", "fpn", "video_branch"}] and not changed(before, adapted)
    report = adapted.adaptation.report
    assert len(report.losses) == len(report.nodes) == 3 and report.change > 0 and report.seconds > 0 and not report.failed
    assert adapted.track(video()) != without()
    assert adapted.track(video()) == adapted.track(video()), "every video starts from the same weights and the same seed"


def test_the_loss_of_a_clip_falls() -> None:
    adapted = tracker({"TTA.ITERS": 20, "TTA.LR": 0.02})
    adapted.track(video(2))  # every step has the same clip
    losses = adapted.adaptation.report.losses
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("mode", ["video", "online"])
def test_the_null_logit_goes_with_the_similarities(mode: str, similarity: str) -> None:
    adapted = tracker(
        {"TTA.MODE": mode, "TTA.ITERS": 1, "TTA.LR": 1.0, "MODEL.SOLO_TRACK.EMB.SIM": similarity, "MODEL.SOLO_TRACK.EMB.TEMPERATURE": 0.5}
    )
    null_logit, (frames, prepare) = adapted.model.embedding_head.null_logit.fill_(2.0), source(adapted)
    images = [prepare(frame)["image"] for frame in frames]
    pairs = [(0, 1)] if mode == "online" else sample_clips(LENGTH, 2, 2, 3, np.random.default_rng(0))
    clips = [{"frames": [images[i], images[j]]} for i, j in pairs]
    scale = 1.0 if similarity == "dot" else 2.0

    def compare(nodes: ClipNodes | None = None) -> tuple[list[np.ndarray], ClipNodes]:
        embeddings, nodes = adapted.model.clip_embeddings(clips, nodes)
        if similarity == "cosine":
            embeddings = embeddings / embeddings.norm(dim=3, keepdim=True)
        return [scale * (e[0][v[0]] @ e[1][v[1]].T).numpy() for e, v in zip(embeddings, nodes.valid, strict=True)], nodes

    before, nodes = compare()
    with adapted.adaptation.adapting(adapted.model, frames, prepare):
        adapted.adaptation.before_frame(adapted.model, {"image": images[0]}, {"image": images[1]})
        moves = [
            now[i, j] - then[i, j]
            for then, now in zip(before, compare(nodes)[0], strict=True)
            for i, j in np.ndindex(then.shape)
            if then[i].argmax() == j and then[:, j].argmax() == i
        ]
        assert null_logit.item() == pytest.approx(2.0 + np.mean(moves), abs=1e-5) and abs(np.mean(moves)) > 1e-3
    assert null_logit == 2.0
    assert adapted.adaptation.report.null_change == pytest.approx(np.mean(moves), abs=1e-5)
    fixed = tracker({"TTA.MOVE_NULL": False})
    fixed.model.embedding_head.null_logit.fill_(2.0)
    with fixed.adaptation.adapting(fixed.model, *source(fixed)):
        assert fixed.model.embedding_head.null_logit == 2.0


@pytest.mark.parametrize("mode", ["video", "online"])
def test_the_tracker_sees_the_null_logit_move(mode: str) -> None:
    adapted = tracker({"TTA.MODE": mode, "TEST.FRAMES_PER_BATCH": 1})
    adapted.model.embedding_head.null_logit.fill_(2.0)
    seen = [float(adapted.tracker.null_logit) for _ in adapted.stream(video())]
    assert seen[-1] != 2.0 and seen[-1] == pytest.approx(2.0 + adapted.adaptation.report.null_change)
    assert (seen[0] == 2.0) == (mode == "online"), "the first frame comes before the first step there"
    assert adapted.tracker.null_logit == 2.0


def test_objects_without_a_partner_as_in_training_or_not() -> None:
    def losses(training: str, adaptation: str) -> list[float]:
        adapted = tracker({"MODEL.SOLO_TRACK.VIDEO.UNMATCHED": training, "TTA.UNMATCHED": adaptation})
        adapted.track(video())
        return adapted.adaptation.report.losses

    assert losses("none", "mutual") == losses("mutual", "") != losses("none", "")


def test_pseudo_identities_join_the_cycle_loss() -> None:
    words = {"MODEL.SOLO_TRACK.VIDEO.PSEUDO_THRESH": 0.05, "MODEL.SOLO_TRACK.VIDEO.NULL_SIM": -1.0}
    adapted = tracker(words | {"TTA.PSEUDO_WEIGHT": 3.0})
    frames, prepare = source(adapted)
    images = [prepare(frame)["image"] for frame in frames]
    clips = [{"frames": [images[i], images[j]]} for i, j in sample_clips(LENGTH, 2, 2, 3, np.random.default_rng(0))]
    with torch.no_grad():
        found = adapted.model.clip_losses(clips, [0, 0])
    assert found.links > 0 and found.identity > 0.1
    before, adaptation = weights(adapted), adapted.adaptation
    with adaptation.adapting(adapted.model, frames, prepare):
        assert adaptation.report.losses[0] == pytest.approx((found.cycle + 3.0 * found.identity).item(), rel=1e-4)
        assert changed(before, adapted) == {"backbone", "fpn", "video_branch"}
    assert not changed(before, adapted)
    shared = words | {"MODEL.SOLO_TRACK.VIDEO.SHARE_HEAD": True, "TTA.ITERS": 20, "TTA.LR": 0.02}

    def apart(weight: float) -> float:
        adapted = tracker(shared | {"TTA.PSEUDO_WEIGHT": weight})
        with adapted.adaptation.adapting(adapted.model, *source(adapted)), torch.no_grad():
            return adapted.model.clip_losses(clips, [0, 0]).identity.item()

    assert apart(3.0) < apart(0.0), "different objects are held apart"


@pytest.mark.parametrize(("part", "moved"), [("backbone", "backbone"), ("fpn", "fpn"), ("video_head", "video_branch")])
def test_parts(part: str, moved: str) -> None:
    adapted = tracker({"TTA.PARTS": [part]})
    before = weights(adapted)
    with adapted.adaptation.adapting(adapted.model, *source(adapted)):
        assert changed(before, adapted) == {moved}


def source(tracker: VideoTracker) -> tuple:
    return open_frames(video()), lambda frame: tracker._prepare(frame).input


def test_continual_goes_on_from_video_to_video() -> None:
    adapted = tracker({"TTA.MODE": "continual"})
    before = weights(adapted)
    first = adapted.track(video())
    middle = weights(adapted)
    assert changed(before, adapted) == {"backbone", "fpn", "video_branch"}
    assert adapted.track(video()) != first and changed(middle, adapted)


def test_errors_in_the_middle_put_the_weights_back() -> None:
    adapted = tracker()
    before = weights(adapted)
    broken = video()
    broken[6] = broken[6].astype(np.float32)
    with pytest.raises(RuntimeError, match="Frame 6"):
        adapted.track(broken)
    assert adapted.adaptation.report.losses and not changed(before, adapted), "frame 6 is in no clip of the first step"
    adapted.tracker.update = lambda instances: 1 / 0
    with pytest.raises(ZeroDivisionError):
        adapted.track(video())
    assert not changed(before, adapted), "also when the fault is not in the detection"
    frames = adapted.detect(video())
    next(frames)
    assert changed(before, adapted)
    frames.close()
    assert not changed(before, adapted)


def test_an_error_in_mid_adaptation_puts_continual_weights_back_too() -> None:
    adapted = tracker({"TTA.MODE": "continual"})
    before = weights(adapted)
    step, steps = adapted.adaptation._step, []

    def fail_at_the_third(*args) -> None:
        steps.append(changed(before, adapted))
        if len(steps) == 3:
            raise MemoryError
        step(*args)

    adapted.adaptation._step = fail_at_the_third
    with pytest.raises(MemoryError):
        adapted.track(video())
    assert steps[-1] and not changed(before, adapted)


def test_an_error_under_an_offline_tracker_puts_the_weights_back() -> None:
    adapted = tracker({"TRACKER_HEADS.TRACKER_NAME": "SeqTracker"})
    before = weights(adapted)
    adapted.tracker.add = lambda instances: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(adapted.stream(video()))
    assert adapted.adaptation.report.losses and not changed(before, adapted)


def test_a_model_is_one_videos_at_a_time() -> None:
    adapted = tracker()
    before = weights(adapted)
    frames = adapted.stream(video())
    next(frames)
    with pytest.raises(RuntimeError, match="adapted to another video, which is not finished"):
        adapted.track(video(2))
    frames.close()
    assert not changed(before, adapted) and adapted.track(video(2))


def test_it_cannot_learn_in_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\) does not allow"):
        tracker().track(video())


def test_parts_that_cannot_move() -> None:
    adapted = tracker({"TTA.PARTS": ["backbone"]})
    adapted.model.backbone.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"TTA\.PARTS \['backbone'\] hold no parameter that may move"):
        adapted.track(video())


@pytest.mark.parametrize("changes", [{"TRACKER_HEADS.NULL_LOGIT": 1.0}, {"TRACKER_HEADS.SIM": "bisoftmax"}])
def test_a_null_logit_that_nobody_reads_stays(changes: dict) -> None:
    adapted = tracker(changes)
    adapted.model.embedding_head.null_logit.fill_(2.0)
    adapted.track(video())
    assert adapted.adaptation.report.change > 0 == adapted.adaptation.report.null_change


def test_online_goes_back_to_where_it_was_before_the_video_when_a_later_step_fails() -> None:
    adapted = tracker({"TTA.MODE": "online", "TEST.FRAMES_PER_BATCH": 1})
    model, losses, steps = adapted.model, adapted.model.clip_losses, []

    def third_is_nan(*args, **words):
        steps.append(losses(*args, **words))
        return steps[-1]._replace(cycle=steps[-1].cycle * torch.nan) if len(steps) == 3 else steps[-1]

    model.clip_losses = third_is_nan
    null_logit, before = model.embedding_head.null_logit.fill_(2.0), weights(adapted)
    seen = [(null_logit.item() == 2.0, not changed(before, adapted)) for _ in adapted.detect(video())]
    assert [old for old, _ in seen] == [True, False, False, True, True, True, True] and adapted.adaptation.report.failed
    assert all(null == others for null, others in seen), "the frames after the failure see the old weights"


@pytest.mark.parametrize("move_null", [True, False])
@pytest.mark.parametrize("iters", [3, 1])
@pytest.mark.parametrize("mode", ["video", "online", "continual"])
def test_a_loss_or_an_outcome_that_is_not_finite_is_given_up(
    mode: str, iters: int, move_null: bool, caplog: pytest.LogCaptureFixture
) -> None:
    adapted = tracker({"TTA.LR": 1e30, "TTA.ITERS": iters, "TTA.MODE": mode, "TTA.MOVE_NULL": move_null, "TEST.FRAMES_PER_BATCH": 1})
    adapted.model.embedding_head.null_logit.fill_(2.0)
    before = weights(adapted)
    tracks = adapted.track(video())
    assert adapted.adaptation.report.failed and not changed(before, adapted) and "not finite" in caplog.text
    if mode != "online":  # where frames had been tracked before it failed
        still = tracker({"TTA.ENABLED": False, "TEST.FRAMES_PER_BATCH": 1})
        still.model.embedding_head.null_logit.fill_(2.0)
        assert tracks == still.track(video())


NOTHING = "Not adapted: no clip has an object in each frame, several in one, and a walk that counts (TTA.UNMATCHED)."


@pytest.mark.parametrize("mode", ["video", "online", "continual"])
@pytest.mark.parametrize(
    ("changes", "length", "losses", "message"),
    [
        ({}, 1, [], "Not adapted: the video has fewer than the 2 frames of a clip."),
        ({"INPUT.CLIPS.FRAMES": 4}, 3, [], "Not adapted: the video has fewer than the 4 frames of a clip."),
        ({"TTA.ITERS": 0}, LENGTH, [], "Not adapted: TTA.ITERS is 0."),
        ({"MODEL.SOLO_TRACK.VIDEO.NODE_SCORE": 1.0}, LENGTH, [0, 0, 0], NOTHING),
        ({"MODEL.SOLO_TRACK.VIDEO.MAX_NODES": 1}, LENGTH, [0, 0, 0], NOTHING),
    ],
    ids=["a single frame", "shorter than a clip", "no steps", "no confident node", "a single object"],
)
def test_videos_with_nothing_to_learn_from(
    mode: str, changes: dict, length: int, losses: list[float], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They are tracked with the weights as they are, and that is said."""
    if mode == "online" and "INPUT.CLIPS.FRAMES" in changes:
        pytest.skip("online steps are on two frames")
    changes = changes | {"TEST.FRAMES_PER_BATCH": 1}
    adapted = tracker({"TTA.MODE": mode} | changes)
    before = weights(adapted)
    with caplog.at_level(logging.INFO, logger="solotrack.adaptation"):
        tracks = adapted.track(video(length))
    assert adapted.adaptation.report.losses == losses and adapted.adaptation.report.change == 0 and not changed(before, adapted)
    assert [record.message for record in caplog.records if record.name == "solotrack.adaptation"] == [message]
    assert tracks == tracker({"TTA.ENABLED": False} | changes).track(video(length))


@pytest.mark.parametrize("mode", ["video", "online", "continual"])
def test_a_corrupt_frame_is_named_and_the_weights_go_back(mode: str, tmp_path: Path) -> None:
    for number, image in enumerate(video()):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    content = (tmp_path / "4.png").read_bytes()
    (tmp_path / "4.png").write_bytes(content[: len(content) // 2])
    adapted = tracker({"TTA.MODE": mode, "TTA.ITERS": 6})
    before = weights(adapted)
    with pytest.raises(FrameError, match=r"4\.png cannot be read .* copy or extract it again"):
        adapted.track(str(tmp_path))
    assert not changed(before, adapted)


def test_a_broken_file_is_not_taken_for_a_camera(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mkv", video())
    whole = (tmp_path / "clip.mkv").read_bytes()
    cluster = bytes.fromhex("1f43b675")  # begins the frames: cut in there, the file opens and has none
    (tmp_path / "clip.mkv").write_bytes(whole[: whole.index(cluster) + 20])
    with pytest.raises(FrameError, match=r"clip\.mkv holds no frame"):
        tracker().track(str(tmp_path / "clip.mkv"))


def stream() -> Iterator[np.ndarray]:
    yield from video()


def test_streams_are_adapted_to_online_only() -> None:
    online = tracker({"TTA.MODE": "online"})
    assert online.track(stream()) and len(online.adaptation.report.losses) == 3
    with pytest.raises(ConfigError, match=r"TTA\.MODE video needs a video whose frames can be read in any order; use TTA\.MODE online"):
        tracker().track(stream())
