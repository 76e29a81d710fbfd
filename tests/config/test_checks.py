"""What is refused, and how it says so."""

from __future__ import annotations

import pytest

from solotrack.config import ConfigError, check_config, check_device, load_config

# key -> a value that cannot work, and what the sentence must say
IMPOSSIBLE = {
    # one of a few words or numbers
    "MODEL.META_ARCHITECTURE": ("'MaskTrackRcnn'", "allowed: 'SOLOTrack', 'MaskTrackRCNN', 'SipMaskVIS'"),
    "MODEL.SOLO.NORM": ("'BN'", "allowed: 'GN', ''"),
    "MODEL.SOLO.NMS_KERNEL": ("'cubic'", "allowed: 'gaussian', 'linear'"),
    "MODEL.SOLO_TRACK.EMB.VIEWS": ("3", "allowed: 1, 2"),
    "MODEL.SOLO_TRACK.EMB.SIM": ("'l2'", "allowed: 'dot', 'cosine'"),
    "MODEL.SOLO_TRACK.ME.MODE": ("'maximise'", "'minimize'"),
    "MODEL.SOLO_TRACK.EMB_READ": ("'mask'", "'center_region'"),
    "INPUT.MASK_FORMAT": ("'polygon'", "allowed: 'bitmask'"),
    "INPUT.FORMAT": ("'HSV'", "allowed: 'RGB', 'BGR'"),
    "DATASETS.VIDEO_CATEGORIES": ("'name21'", "'sem19'"),
    "SOLVER.OPTIMIZER": ("'ADAM'", "allowed: 'SGD', 'ADAMW'"),
    "SOLVER.LR_SCHEDULER_NAME": ("'Cosine'", "'WarmupCosineLR'"),
    "SOLVER.AMP.DTYPE": ("'half'", "'bfloat16'"),
    "TRACKER_HEADS.TRACKER_NAME": ("'Tracker'", "'IoUTracker'"),
    "TRACKER_HEADS.SIM": ("'cosine'", "'bisoftmax'"),
    "MODEL.SOLO.TYPE": ("'SOLO'", "allowed: 'solo', 'decoupled'"),
    "MODEL.RESNETS.DEPTH": ("60", "allowed: 18, 34, 50, 101, 152"),
    "INPUT.CROP.TYPE": ("'random'", "'absolute'"),
    "INPUT.RANDOM_FLIP": ("'both'", "allowed: 'none', 'horizontal', 'vertical'"),
    "INPUT.CLIPS.FRAMES": ("5", "allowed: 2, 3, 4"),
    # a range
    "SOLVER.WARMUP_FACTOR": ("1.5", "at least 0 and at most 1"),
    "SOLVER.WARMUP_ITERS": ("-1", "at least 0"),
    "DATALOADER.NUM_WORKERS": ("-1", "at least 0"),
    "MODEL.SOLO.NUM_CLASSES": ("0", "at least 1"),
    "MODEL.SOLO.SIGMA": ("0.0", "greater than 0 and at most 1"),
    "MODEL.SOLO.PRIOR_PROB": ("1.0", "greater than 0 and at most 1"),
    "MODEL.SOLO.SCORE_THRESH": ("1.1", "at least 0 and at most 1"),
    "MODEL.SOLO.NMS_PRE": ("0", "at least 1"),
    "MODEL.SOLO.NMS_SIGMA": ("0.0", "greater than 0"),
    "MODEL.SOLO.FOCAL_GAMMA": ("-1.0", "at least 0"),
    "MODEL.SOLO_TRACK.EMB.TEMPERATURE": ("0.0", "greater than 0"),
    "MODEL.SOLO_TRACK.EMB.LOSS_WEIGHT": ("-0.1", "at least 0"),
    "INPUT.VIEWS.FLIP": ("1.5", "at least 0 and at most 1"),
    "INPUT.MIN_SIZE_TEST": ("-1", "at least 0"),
    "SOLVER.BASE_LR": ("-0.1", "at least 0"),
    "SOLVER.MAX_ITER": ("0", "at least 1"),
    "SOLVER.CHECKPOINT_PERIOD": ("0", "at least 1"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": ("0.0", "greater than 0"),
    "TEST.FRAMES_PER_BATCH": ("0", "at least 1"),
    "TEST.EVAL_PERIOD": ("-1", "at least 0"),
    "TRACKER_HEADS.COS_MIN": ("-1.5", "at least -1 and at most 1"),
    "TRACKER_HEADS.CALIBRATION.DROP": ("1.0", "at least 0.01 and at most 0.99"),
    "TRACKER_HEADS.RETAIN": ("-1", "at least 0"),
    "INPUT.CLIPS.MAX_GAP": ("0", "at least 1"),
    "INPUT.CLIPS.MAX_SIZE_TRAIN": ("0", "at least 1"),
    "SOLVER.CLIPS_PER_BATCH": ("-1", "at least 0"),
    # lists
    "MODEL.SOLO.NUM_GRIDS": ("[40, 36, 24, 16, 0]", "whole number, at least 1"),
    "MODEL.SOLO.STRIDES": ("[8, 8, 16, 32, 33]", "even number"),
    "MODEL.SOLO.SCALE_RANGES": ("[[1, 96], [48, 192], [96, 384], [192, 768], [2048, 384]]", "[smallest, largest]"),
    "MODEL.SOLO.IN_FEATURES": ("['p2', 'p3']", "names 2 levels; give one for each"),
    "MODEL.SMALL_RESNET.CHANNELS": ("[8, 16, 32]", "four numbers"),
    "MODEL.SMALL_RESNET.BLOCKS": ("[1, 1, 1, 0]", "four numbers"),
    "MODEL.PIXEL_MEAN": ("[1.0, 2.0]", "three numbers"),
    "MODEL.PIXEL_STD": ("[1.0, 0.0, 1.0]", "has a 0"),
    "SOLVER.STEPS": ("(80000, 60000)", "must ascend"),
    "INPUT.AUG.SCALE_RANGE": ("[1.5, 0.5]", "0 < smallest <= largest"),
    "INPUT.VIEWS.SCALE_RANGE": ("[0.0, 1.5]", "0 < smallest <= largest"),
    "INPUT.COPY_PASTE.SCALE_RANGE": ("[0.0, 1.5]", "0 < smallest <= largest"),
    "DATASETS.CUSTOM.IMAGES": ("[['name', 'file.json']]", "[name, json file, folder]"),
    "DATASETS.CUSTOM.VIDEOS": ("['name']", "[name, json file, folder]"),
    "DATASETS.CUSTOM.CLIPS": ("[['name', 'folder', '']]", "[name, video file or folder or pattern]"),
    "INPUT.CLIPS.MIN_SIZE_TRAIN": ("[360, 0]", "whole numbers of at least 1"),
    "DATASETS.CLASS_NAMES": ("['cat', 'dog']", "2 names; give MODEL.SOLO.NUM_CLASSES (80)"),
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_impossible_values(key: str) -> None:
    value, text = IMPOSSIBLE[key]
    with pytest.raises(ConfigError) as caught:
        load_config("", [key, value])
    assert key in str(caught.value) and text in str(caught.value), str(caught.value)
    assert all(line.endswith(".") for line in str(caught.value).splitlines())


@pytest.mark.parametrize("value", ["[1, 2, 3, 4, 5]", "[[1], [2], [3], [4], [5]]", "[['a', 'b']] * 5"])
@pytest.mark.parametrize("key", ["MODEL.SOLO.SCALE_RANGES", "INPUT.VIEWS.SCALE_RANGE", "DATASETS.CUSTOM.VIDEOS", "DATASETS.CUSTOM.CLIPS"])
def test_lists_of_another_shape_are_refused_not_tripped_over(key: str, value: str) -> None:
    if value.endswith("* 5"):
        value = repr([["a", "b"]] * 5)
    with pytest.raises(ConfigError, match=key):
        load_config("", [key, value])


def test_values_that_exclude_one_another() -> None:
    own = ["DATASETS.CUSTOM.CLIPS", "[['c', 'folder']]"]
    for overrides, text in (
        (["MODEL.SOLO.CHANNELS", "100"], r"MODEL\.SOLO\.CHANNELS \(100\) must be a multiple of MODEL\.SOLO\.NUM_GROUPS \(32\)"),
        (["MODEL.SOLO_TRACK.EMB.CHANNELS", "100"], r"MODEL\.SOLO_TRACK\.EMB\.CHANNELS \(100\) must be a multiple"),
        (
            ["MODEL.SOLO_TRACK.VIDEO.ENABLED", "True", "TTA.ENABLED", "True", "TTA.PARTS", "['fpn']", "MODEL.SOLO_TRACK.EMB.STAGE", "res3"],
            r"TTA\.PARTS is fpn alone, but with MODEL\.SOLO_TRACK\.EMB\.STAGE .* nothing to adapt",
        ),
        (["MODEL.SOLO_TRACK.EMB.KERNEL_SIZE", "2"], r"KERNEL_SIZE is 2; it must be odd"),
        (["MODEL.SOLO_TRACK.EMB.QUEUE", "8", "MODEL.SOLO_TRACK.EMB.LOSS", "infonce"], r"infonce compares cells; set QUEUE to 0"),
        (["MODEL.SMALL_RESNET.CHANNELS", "[32, 64, 64, 128]"], r"neighbours must differ"),
        (["MODEL.SOLO.FREEZE", "True", "MODEL.SOLO_TRACK.EMB.ENABLED", "False"], r"nothing to train"),
        (["INPUT.STRETCH.LOW", "60.0", "INPUT.STRETCH.HIGH", "40.0"], r"INPUT\.STRETCH\.LOW must be below INPUT\.STRETCH\.HIGH"),
        (["SOLVER.CLIPS_PER_BATCH", "4"], r"SOLVER\.CLIPS_PER_BATCH needs DATASETS\.TRAIN_CLIPS"),
        (["TRACKER_HEADS.CALIBRATION.SOURCE", "clips"], r"CALIBRATION\.SOURCE clips needs DATASETS\.TRAIN_CLIPS"),
        (
            ["TRACKER_HEADS.CALIBRATION.SOURCE", "clips", "TRACKER_HEADS.CALIBRATION.DISTRACTORS", "5", "DATASETS.TRAIN_CLIPS", "['a']"],
            r"DISTRACTORS are objects of other images",
        ),
        ([*own, "DATASETS.TRAIN", "('a', 'c')"], r"DATASETS\.TRAIN has 'c' of DATASETS\.CUSTOM\.CLIPS.* only DATASETS\.TRAIN_CLIPS"),
        ([*own, "DATASETS.TEST", "('c',)"], r"DATASETS\.TEST has 'c' of DATASETS\.CUSTOM\.CLIPS"),
        (["DATASETS.CUSTOM.CLIPS", "[['c', 'x'], ['d', 'x'], ['c', 'y']]"], r"name more than once \(c, d, c\)"),
        (["MODEL.SOLO_TRACK.EMB.ENABLED", "False"], r"use DistanceTracker or IoUTracker"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_config("", overrides)
    load_config("", ["MODEL.SOLO_TRACK.EMB.ENABLED", "False", "TRACKER_HEADS.TRACKER_NAME", "IoUTracker"])
    load_config("", [*own, "MODEL.SOLO_TRACK.VIDEO.ENABLED", "True", "SOLVER.CLIPS_PER_BATCH", "4", "DATASETS.TRAIN_CLIPS", "['c']"])
    load_config("", ["MODEL.SOLO.NORM", "", "MODEL.SOLO.CHANNELS", "100"])


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("", ["MODEL.SOLO.SIGMA", "2.0", "TRACKER_HEADS.SIM", "l2", "MODEL.SOLO.NUM_GRIDS", "[1]", "SOLVER.MAX_ITER", "0"])
    named = [line.split()[0] for line in str(caught.value).splitlines()]
    assert sorted(named) == ["MODEL.SOLO.NUM_GRIDS", "MODEL.SOLO.SIGMA", "SOLVER.MAX_ITER", "TRACKER_HEADS.SIM"]


def test_not_a_number_is_in_no_range() -> None:
    cfg = load_config()
    cfg.TRACKER_HEADS.SCORE_THRESH = float("nan")
    with pytest.raises(ConfigError, match=r"TRACKER_HEADS\.SCORE_THRESH is nan"):
        check_config(cfg)


@pytest.mark.parametrize(("device", "count"), [("cpu", 0), ("cuda", 1), ("cuda:1", 2)])
def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch, device: str, count: int) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    check_device(load_config("", ["MODEL.DEVICE", device]))


@pytest.mark.parametrize(
    ("device", "count", "text"),
    [
        ("cuda", 0, "is cuda but PyTorch sees no GPU here; set MODEL.DEVICE to cpu."),
        ("cuda:1", 1, "is cuda:1 but PyTorch sees 1 GPU here"),
        ("gpu", 4, "is 'gpu', which PyTorch does not know"),
    ],
)
def test_devices_that_are_not(monkeypatch: pytest.MonkeyPatch, device: str, count: int, text: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(ConfigError) as caught:
        check_device(load_config("", ["MODEL.DEVICE", device]))
    assert str(caught.value).startswith(f"MODEL.DEVICE {text}")


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_device(load_config("", ["MODEL.DEVICE", "cuda"]), 2)
    check_device(load_config("", ["MODEL.DEVICE", "cpu"]), 8)
    with pytest.raises(ConfigError, match="3 GPUs are asked for but PyTorch sees 2 here"):
        check_device(load_config("", ["MODEL.DEVICE", "cuda"]), 3)
