"""The null logit: where known and new objects are confused equally often."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from solotrack.config import tracker_similarity
from solotrack.data.annotation_file import DatasetError
from solotrack.data.clip_mapper import sample_clips
from solotrack.data.clip_sets import load_clip_videos
from solotrack.data.loader import training_records, training_samples
from solotrack.engine import calibration
from solotrack.engine.calibration import CalibrateNullLogit, calibrate_null_logit, equal_error_threshold, least_error_threshold
from solotrack.engine.streaming import VideoTracker
from tests import tiny

# ---- the threshold


def errors_at(threshold: float, known: torch.Tensor, new: torch.Tensor) -> tuple[float, float]:
    """Share of known below the threshold, of new at or above it, counted one by one."""
    missed = sum(value < threshold for value in known.tolist()) / len(known)
    fooled = sum(value >= threshold for value in new.tolist()) / len(new)
    return missed, fooled


@pytest.mark.parametrize("seed", range(20))
def test_threshold_against_every_candidate(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    n, m = torch.randint(1, 60, (2,), generator=rng).tolist()
    known = torch.randn(n, generator=rng) + seed % 4
    new = torch.randn(m, generator=rng)
    if seed % 2:  # many ties
        known, new = known.round(), new.round()
    threshold, error = equal_error_threshold(known, new)
    missed, fooled = errors_at(threshold, known, new)
    assert error == pytest.approx((missed + fooled) / 2, abs=1e-6)
    gaps = [abs(a - b) for a, b in (errors_at(t, known, new) for t in torch.cat([known, new]).tolist())]
    assert abs(missed - fooled) == pytest.approx(min(gaps), abs=1e-6)


def test_threshold_by_hand() -> None:
    known, new = torch.tensor([5.0, 6, 7, 8]), torch.tensor([1.0, 2, 3, 4])
    threshold, error = equal_error_threshold(known, new)
    assert (threshold, error) == (5, 0), "at the threshold an object counts as known"
    assert equal_error_threshold(torch.tensor([2.0, 5, 6, 7]), torch.tensor([1.0, 3, 3.5, 5.5]))[1] == pytest.approx(0.25)
    assert equal_error_threshold(known, known)[1] == pytest.approx(0.5)
    assert equal_error_threshold(new, known)[1] == 1


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(8))
def test_fewest_mistakes_against_every_candidate(seed: int, share: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    known, new = torch.randn(40, generator=rng) + 1, torch.randn(25, generator=rng)
    if seed % 2:  # many ties
        known, new = known.round(), new.round()
    threshold, wrong = least_error_threshold(known, new, share)

    def mistakes(threshold: float) -> float:
        missed, fooled = errors_at(threshold, known, new)
        return (1 - share) * missed + share * fooled

    assert wrong == pytest.approx(mistakes(threshold), abs=1e-6)
    assert wrong == pytest.approx(min(mistakes(value) for value in torch.cat([known, new]).tolist()), abs=1e-6)


def test_the_rarer_new_objects_are_the_lower_the_threshold() -> None:
    known, new = torch.tensor([2.0, 5, 6, 7, 8]), torch.tensor([1.0, 2.5, 3, 3.5, 4, 4.5, 5.5])
    assert [least_error_threshold(known, new, share)[0] for share in (0.1, 0.5, 0.9)] == [2, 5, 6]


# ---- the calibration


def scores_one_by_one(seed: int, distractors: int = 0) -> tuple[list[float], list[float]]:
    """Largest similarity of known and of new objects, image by image and object by object."""
    cfg, model = tiny.trained()
    metric, scale = tracker_similarity(cfg)
    assert metric == "cosine"
    cfg = cfg.clone()
    cfg.MODEL.SOLO_TRACK.EMB.VIEWS = 2
    hidden = torch.Generator().manual_seed(seed)
    known, new, gone = [], [], []
    for sample in training_samples(cfg, training_records(cfg, cfg.TRACKER_HEADS.CALIBRATION.IMAGES, seed), seed):
        views = []
        for view in (sample, sample["second_view"]):
            with torch.no_grad():
                found = model([{"image": view["image"]}])[0]["instances"]
            truth = view["instances"]
            detected = {}
            for number, mask in zip(truth.gt_ids.tolist(), truth.gt_masks.tensor, strict=True):
                ious = [((mask & other).sum() / (mask | other).sum()).item() for other in found.pred_masks]
                if ious and max(ious) >= 0.5:
                    detected[number] = found.embeddings[int(np.argmax(ious))]
            views.append(detected)
        keep = torch.rand(len(views[0]), generator=hidden) >= cfg.TRACKER_HEADS.CALIBRATION.DROP
        memory = {number: e for (number, e), kept in zip(views[0].items(), keep.tolist(), strict=True) if kept}
        if memory and views[1]:
            remembered = [*memory.values(), *gone]
            for number, e in views[1].items():
                score = max(scale * torch.cosine_similarity(e, other, dim=0).item() for other in remembered)
                (known if number in memory else new).append(score)
            gone = remembered[:distractors]
    return known, new


@pytest.mark.parametrize("seed,new_share,distractors", [(0, 0.0, 0), (1, 0.0, 0), (0, 0.1, 0), (0, 0.0, 3)])
def test_calibration_of_a_trained_model(seed: int, new_share: float, distractors: int) -> None:
    cfg, model = tiny.trained()
    cfg = cfg.clone()
    cfg.TRACKER_HEADS.CALIBRATION.NEW_SHARE = new_share
    cfg.TRACKER_HEADS.CALIBRATION.DISTRACTORS = distractors
    known, new = scores_one_by_one(seed, distractors)
    assert min(len(known), len(new)) >= 20
    value, error = calibrate_null_logit(cfg, model, seed)
    threshold = partial(least_error_threshold, new_share=new_share) if new_share else equal_error_threshold
    expected, expected_error = threshold(torch.tensor(known), torch.tensor(new))
    assert value == pytest.approx(expected, abs=1e-3) and error == pytest.approx(expected_error, abs=1e-3)
    assert error < (new_share or 0.5) * (1 if distractors else 0.9), "better than chance"
    assert model.embedding_head.null_logit.item() == pytest.approx(value)
    assert model.embedding_head.null_logit.dim() == 0


def test_distractors_raise_the_null_logit() -> None:
    cfg, model = tiny.trained()
    values = []
    for count in (0, 1, 10, 100):
        cfg = cfg.clone()
        cfg.TRACKER_HEADS.CALIBRATION.DISTRACTORS = count
        values.append(calibrate_null_logit(cfg, model)[0])
    assert values == sorted(values) and values[0] < values[-1]


def test_what_looks_alike_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cfg, model = tiny.trained()
    cfg = cfg.clone()
    cfg.TRACKER_HEADS.CALIBRATION.NEW_SHARE = 0.1
    same = torch.arange(30.0)
    monkeypatch.setattr(calibration, "_in_views", lambda *_: (same, same))
    assert calibrate_null_logit(cfg, model) == (0.0, pytest.approx(0.1)), "everything is known"
    assert "100% of the new objects are taken for known" in caplog.text
    caplog.clear()
    monkeypatch.setattr(calibration, "_in_views", lambda *_: (same, same[:20]))
    cfg.TRACKER_HEADS.CALIBRATION.NEW_SHARE = 0.9
    assert calibrate_null_logit(cfg, model)[0] == 20
    assert "67% of the known objects are taken for new" in caplog.text
    cfg.TRACKER_HEADS.CALIBRATION.NEW_SHARE = 0.1
    caplog.clear()
    monkeypatch.setattr(calibration, "_in_views", lambda *_: (same + 20, same))
    assert calibrate_null_logit(cfg, model)[0] == 20 and "alike" not in caplog.text


def on_clips(changes: dict | None = None) -> tuple[CfgNode, torch.nn.Module]:
    cfg, model = tiny.trained()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(["TRACKER_HEADS.CALIBRATION.SOURCE", "clips", "DATASETS.TRAIN_CLIPS", ["tiny_test"], "INPUT.CLIPS.MAX_GAP", 2])
    cfg.merge_from_list([word for item in (changes or {}).items() for word in item])
    return cfg, model


def test_calibration_on_clips_against_a_slow_one() -> None:
    cfg, model = on_clips()
    metric, scale = tracker_similarity(cfg)
    detector, rng, trk = VideoTracker.from_config(cfg, model), np.random.default_rng(3), cfg.TRACKER_HEADS
    videos = load_clip_videos(cfg)
    known, new = [], []
    for index in rng.integers(len(videos), size=trk.CALIBRATION.IMAGES):
        files = videos[index]["source"]
        ((one, two),) = sample_clips(len(files), 1, 2, 2, rng)
        assert 1 <= two - one <= 2
        frames = []
        for number in (one, two):
            found = detector.detect_image(cv2.cvtColor(cv2.imread(files[number]), cv2.COLOR_BGR2RGB))
            best = [i for i in found.scores.argsort(descending=True).tolist() if found.scores[i] >= trk.SCORE_THRESH]
            frames.append([found.embeddings[i] for i in best[: trk.MAX_PER_FRAME]])
        if len(frames[0]) < 2:
            continue
        table = [[scale * torch.cosine_similarity(b, a, dim=0).item() for a in frames[0]] for b in frames[1]]
        for i, row in enumerate(table):
            j = int(np.argmax(row))
            if int(np.argmax([other[j] for other in table])) == i:
                known.append(row[j])
                new.append(max(row[:j] + row[j + 1 :]))
    assert metric == "cosine" and trk.PRE_NMS_THRESH == 1 and len(known) >= 20
    value, error = calibrate_null_logit(cfg, model, seed=3)
    expected, expected_error = equal_error_threshold(torch.tensor(known), torch.tensor(new))
    assert value == pytest.approx(expected, abs=1e-3) and error == pytest.approx(expected_error, abs=1e-3)
    assert model.embedding_head.null_logit.item() == pytest.approx(value)
    assert calibrate_null_logit(cfg, model, seed=4) != (value, error)


def test_clips_without_detections_leave_the_value_alone(caplog: pytest.LogCaptureFixture) -> None:
    cfg, model = on_clips({"TRACKER_HEADS.SCORE_THRESH": 1.0})
    model.embedding_head.null_logit.fill_(1.25)
    assert calibrate_null_logit(cfg, model) is None
    assert model.embedding_head.null_logit == 1.25 and "only 0 known and 0 new" in caplog.text


def test_a_broken_frame_costs_its_pairs_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg, model = on_clips()
    videos = load_clip_videos(cfg)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    broken = {"source": [str(tmp_path / "broken.jpg")] * 2}
    assert calibrate_null_logit(cfg, model, records=[*videos, broken]) is not None
    assert f"without a pair of frames. The frame {tmp_path / 'broken.jpg'}" in caplog.text
    assert calibrate_null_logit(cfg, model, records=[broken]) is None


def test_a_broken_image_costs_its_pair_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg, model = tiny.trained()
    records = list(training_records(cfg, cfg.TRACKER_HEADS.CALIBRATION.IMAGES, 0))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    index, record = records[0]
    whole = calibrate_null_logit(cfg, model, records=records[1:])
    broken = [(index, {**record, "file_name": str(tmp_path / "broken.jpg")}), *records[1:]]
    assert calibrate_null_logit(cfg, model, records=broken) == whole
    assert f"without an image. The frame {tmp_path / 'broken.jpg'}" in caplog.text


@pytest.mark.parametrize("mode", [True, False])
def test_an_error_leaves_the_mode_alone(monkeypatch: pytest.MonkeyPatch, mode: bool) -> None:
    cfg, model = tiny.trained()
    model.train(mode)
    monkeypatch.setattr(calibration, "training_samples", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calibrate_null_logit(cfg, model)
    assert model.training is mode
    model.eval()


def test_calibration_touches_nothing_but_its_buffer() -> None:
    cfg, model = tiny.trained()
    for mode in (True, False):
        model.train(mode)
        model.embedding_head.null_logit.fill_(float("nan"))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
        first = calibrate_null_logit(cfg, model)
        assert tiny.difference(before, model.state_dict()) == ["embedding_head.null_logit"]
        assert model.training is mode and model.backbone.training is mode
        assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
        assert torch.equal(torch.get_rng_state(), states[2])
        assert cfg.MODEL.SOLO_TRACK.EMB.VIEWS == 1
        assert calibrate_null_logit(cfg, model) == first
    model.eval()


def test_size_of_the_batches_does_not_matter() -> None:
    cfg, model = tiny.trained()
    other = cfg.clone()
    other.TEST.FRAMES_PER_BATCH = 1
    assert calibrate_null_logit(cfg, model) == pytest.approx(calibrate_null_logit(other, model), abs=1e-3)


def test_too_few_objects_leave_the_value_alone(caplog: pytest.LogCaptureFixture) -> None:
    cfg, model = tiny.trained()
    few = cfg.clone()
    few.TRACKER_HEADS.CALIBRATION.IMAGES = 2
    model.embedding_head.null_logit.fill_(1.25)
    assert calibrate_null_logit(few, model) is None
    assert model.embedding_head.null_logit == 1.25
    assert "Null logit not calibrated" in caplog.text
    blind = tiny.model(cfg)  # detects nothing
    assert calibrate_null_logit(cfg, blind) is None
    assert blind.embedding_head.null_logit.isnan()


# ---- the hook


@pytest.mark.parametrize(
    ("periods", "last", "expected"),
    [((4, 3), 10, [3, 4, 6, 8, 9, 10]), ((0, 5), 9, [5, 9]), ((0, 100), 7, [7]), ((2, 4), 4, [2, 4])],
)
def test_hook_calibrates_before_evaluations_and_checkpoints(
    monkeypatch: pytest.MonkeyPatch, periods: tuple[int, ...], last: int, expected: list[int]
) -> None:
    calls, drawn = [], []
    monkeypatch.setattr(
        calibration, "calibrate_null_logit", lambda cfg, model, seed, records: calls.append((trainer.iter + 1, cfg, model, seed, records))
    )
    monkeypatch.setattr(calibration, "training_records", lambda cfg, count, seed: drawn.append((count, seed)) or [(7, {})])
    cfg, model = tiny.config(), torch.nn.Linear(1, 1)
    hook = CalibrateNullLogit(cfg, model, periods)
    hook.trainer = trainer = SimpleNamespace(iter=0, max_iter=last)
    for trainer.iter in range(last):
        hook.after_step()
    assert [call[0] for call in calls] == expected
    assert all(call[1:] == (cfg, model, 0, [(7, {})]) for call in calls)
    assert drawn == [(cfg.TRACKER_HEADS.CALIBRATION.IMAGES, 0)], "the data set is read once, however often it calibrates"


def test_the_hook_reads_the_list_of_videos_once_and_no_labelled_image(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, model = on_clips()
    expected = calibrate_null_logit(cfg, model)[0]
    lists = []
    monkeypatch.setattr(calibration, "training_records", lambda *args, **kwargs: pytest.fail("labels are not needed"))
    monkeypatch.setattr(calibration, "load_clip_videos", lambda cfg: lists.append(load_clip_videos(cfg)) or lists[-1])
    hook = CalibrateNullLogit(cfg, model, (1,))
    hook.trainer = SimpleNamespace(iter=0, max_iter=10)
    hook.before_train()
    for _ in range(2):
        model.embedding_head.null_logit.fill_(float("nan"))
        hook.after_step()
        assert model.embedding_head.null_logit.item() == pytest.approx(expected)
    assert len(lists) == 1


def test_a_set_of_clips_that_is_not_there_shows_before_training() -> None:
    cfg, model = on_clips({"DATASETS.TRAIN_CLIPS": ["gone"], "DATASETS.CUSTOM.CLIPS": [["gone", "no/such/folder"]]})
    with pytest.raises(DatasetError, match="The clips gone are not here"):
        CalibrateNullLogit(cfg, model, (1,)).before_train()


def test_the_hook_finds_the_same_value_every_time() -> None:
    """The records it keeps are not changed by their use, and are those that the calibration alone draws."""
    cfg, model = tiny.trained()
    calibrate_null_logit(cfg, model)
    expected = model.embedding_head.null_logit.item()
    hook = CalibrateNullLogit(cfg, model, (1,))
    hook.trainer = SimpleNamespace(iter=0, max_iter=10)
    for _ in range(2):
        model.embedding_head.null_logit.fill_(float("nan"))
        hook.after_step()
        assert model.embedding_head.null_logit.item() == expected
