"""The config: what is refused and how it says so, and that every key does something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

from solotrack.config import ConfigError, add_solotrack_config, check_config, check_device, load_config, tracker_similarity

ROOT = Path(__file__).resolve().parent.parent
CONFIG_FILES = sorted((ROOT / "projects").rglob("*.yaml"))


def leaves(node: CfgNode, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
    return found


DEFAULTS = leaves(load_config())
OWN = sorted(set(DEFAULTS) - set(leaves(get_cfg())))  # keys that Detectron2 does not have


def write(path: Path, tree: object) -> str:
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def nested(key: str, value: object) -> dict:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


# ---- what is accepted


def test_defaults_pass() -> None:
    cfg = get_cfg()
    add_solotrack_config(cfg)
    check_config(cfg)
    assert leaves(cfg) == DEFAULTS and len(OWN) > 90


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: str(path.relative_to(ROOT / "projects")))
def test_config_files_of_the_projects_load(path: Path) -> None:
    cfg = load_config(str(path))
    if "_BASE_" in path.read_text(encoding="utf-8"):
        assert leaves(cfg) != DEFAULTS


def test_a_dumped_config_loads_again(tmp_path: Path) -> None:
    """config.yaml beside a checkpoint is how a model is used later."""
    changes = ["MODEL.SOLO.SIGMA", "0.3", "DATASETS.CUSTOM.VIDEOS", "[['a', 'a.json', 'frames']]", "TRACKER_HEADS.NULL_LOGIT", "1.5"]
    cfg = load_config("", changes)
    again = load_config(write(tmp_path / "config.yaml", cfg.dump()))
    assert {key: leaves(again)[key] for key in OWN} == {key: leaves(cfg)[key] for key in OWN}


def test_overrides_beat_the_file_and_the_file_its_base(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", {"VERSION": 2, "SEED": 1, "MODEL": {"SOLO": {"SIGMA": 0.3, "NMS_PRE": 7}}, "OUTPUT_DIR": "base"})
    path = write(tmp_path / "top.yaml", {"_BASE_": "base.yaml", "SEED": 2, "MODEL": {"SOLO": {"NMS_PRE": 8}}})
    cfg = load_config(path, ["SEED", "3"])
    assert (cfg.SEED, cfg.MODEL.SOLO.NMS_PRE, cfg.MODEL.SOLO.SIGMA, cfg.OUTPUT_DIR) == (3, 8, 0.3, "base")


# ---- keys that do not exist


def misspelt(key: str) -> Iterator[str]:
    """The key with a letter of its last part missing, doubled or swapped with the next."""
    head, _, leaf = key.rpartition(".")
    head += "." if head else ""
    middle = len(leaf) // 2
    yield head + leaf[:middle] + leaf[middle + 1 :]
    yield head + leaf[:middle] + leaf[middle] + leaf[middle:]
    yield head + leaf[: middle - 1] + leaf[middle] + leaf[middle - 1] + leaf[middle + 1 :]


def test_every_misspelt_key_is_told_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an override; building the defaults anew for hundreds of keys would take minutes, so they are copied."""
    monkeypatch.setattr("solotrack.config.get_cfg", get_cfg().clone)
    checked = 0
    for key in OWN:
        for wrong in set(misspelt(key)) - set(DEFAULTS):
            with pytest.raises(ConfigError) as caught:
                load_config("", [wrong, "1"])
            first, _, suggestions = str(caught.value).partition(" Did you mean ")
            assert first == f"There is no config key {wrong}."
            assert key in suggestions.rstrip("?").split(" or "), str(caught.value)
            checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("MODEL.SOLO.SIGMAA", "MODEL.SOLO.SIGMA"),
        ("MODEL.SOLO_TRACK.EMB.DIMM", "MODEL.SOLO_TRACK.EMB.DIM"),
        ("MODEL.SOLOO.SIGMA", "MODEL.SOLO.SIGMA"),
        ("TRACKER_HEAD.CUES.IOU", "TRACKER_HEADS.CUES.IOU"),
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("SEEED", "SEED"),
    ],
)
def test_misspelt_keys_in_files_and_overrides(tmp_path: Path, key: str, nearest: str) -> None:
    path = write(tmp_path / "c.yaml", {"VERSION": 2} | nested(key, 1))
    for arguments in ((path, []), ("", [key, "1"])):
        with pytest.raises(ConfigError, match=r"^There is no config key .*Did you mean ") as caught:
            load_config(*arguments)
        named = str(caught.value).split()[5].rstrip(".")
        assert key == named or key.startswith(f"{named}."), "a file's misspelt section is named, or the whole key"
        assert key != named or nearest in str(caught.value)


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"^There is no config key XQWZ\.$"):
        load_config("", ["XQWZ", "1"])


# ---- files and overrides that cannot be read


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"no config file {path}"):
            load_config(str(path))
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        load_config(write(tmp_path / "c.yaml", {"_BASE_": "gone.yaml"}))


@pytest.mark.parametrize(
    "text", ["MODEL: [1, 2", "- 1\n- 2\n", "", "just words", "_BASE_: c.yaml", "MODEL:\n\tSOLO: 1", "VERSION: 3", "MODEL: 3", "\x00"]
)
def test_files_that_are_no_configs(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "c.yaml", text))
    assert "\n" not in str(caught.value)
    assert "c.yaml" in str(caught.value) or str(caught.value) == "MODEL must be of type section, not int."


def test_a_config_file_runs_no_code(tmp_path: Path) -> None:
    """They come with checkpoints from elsewhere; Detectron2's own loader would run this."""
    trace = tmp_path / "trace"
    path = write(tmp_path / "c.yaml", f"OUTPUT_DIR: !!python/object/apply:os.mkdir [{trace}]\n")
    with pytest.raises(ConfigError, match=r"c\.yaml is not a config file"):
        load_config(path)
    assert not trace.exists()


@pytest.mark.parametrize("overrides", [["SEED"], ["--resume"], ["SEED", "1", "MODEL.DEVICE"], ["SEED.X", "1"]])
def test_overrides_that_are_no_pairs(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^Config overrides must be KEY VALUE pairs: "):
        load_config("", overrides)


# ---- values


@pytest.mark.parametrize(
    ("key", "value", "types"),
    [
        ("MODEL.SOLO.NUM_CLASSES", "many", "int, not str"),
        ("MODEL.SOLO.NUM_CLASSES", "3.5", "int, not float"),
        ("MODEL.SOLO.NUM_CLASSES", "True", "int, not bool"),
        ("MODEL.SOLO.SIGMA", "1", "float, not int; write 1.0 for 1"),
        ("MODEL.SOLO.NUM_GRIDS", "12", "list, not int"),
        ("MODEL.SOLO", "12", "section, not int"),
        ("TRACKER_HEADS.CUES.ENABLED", "1", "bool, not int"),
    ],
)
def test_values_of_another_type(tmp_path: Path, key: str, value: str, types: str) -> None:
    path = write(tmp_path / "c.yaml", {"VERSION": 2} | nested(key, yaml.safe_load(value)))
    for arguments in ((path, []), ("", [key, value])):
        with pytest.raises(ConfigError) as caught:
            load_config(*arguments)
        assert str(caught.value) == f"{key} must be of type {types}."


@pytest.mark.parametrize("key", ["MODEL.SOLO.NUM_GRIDS", "MODEL.SOLO.SIGMA", "INPUT.FORMAT", "DATASETS.CUSTOM.IMAGES", "SOLVER.BASE_LR"])
def test_none_is_no_value(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key} must have a value, not None\.$"):
        load_config("", [key, "None"])


def test_none_where_it_means_something() -> None:
    for key in ("MODEL.SOLO_TRACK.EMB.NULL_LOGIT", "TRACKER_HEADS.NULL_LOGIT"):
        assert leaves(load_config("", [key, "None"]))[key] is None
        assert leaves(load_config("", [key, "-1.5"]))[key] == -1.5
        assert leaves(load_config("", [key, "2"]))[key] == 2
        with pytest.raises(ConfigError, match=rf"{key} is 'low'; it must be a number or None\."):
            load_config("", [key, "low"])


# key -> a value that cannot work, and what the sentence must say
IMPOSSIBLE = {
    # one of a few words or numbers
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
    # a range
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
    # lists
    "MODEL.SOLO.NUM_GRIDS": ("[40, 36, 24, 16, 0]", "whole number, at least 1"),
    "MODEL.SOLO.STRIDES": ("[8, 8, 16, 32, 33]", "even number"),
    "MODEL.SOLO.SCALE_RANGES": ("[[1, 96], [48, 192], [96, 384], [192, 768], [2048, 384]]", "[smallest, largest]"),
    "MODEL.SOLO.IN_FEATURES": ("['p2', 'p3']", "names 2 levels; give one for each"),
    "MODEL.SMALL_RESNET.CHANNELS": ("[8, 16, 32]", "four numbers"),
    "MODEL.SMALL_RESNET.BLOCKS": ("[1, 1, 1, 0]", "four numbers"),
    "INPUT.AUG.SCALE_RANGE": ("[1.5, 0.5]", "0 < smallest <= largest"),
    "INPUT.VIEWS.SCALE_RANGE": ("[0.0, 1.5]", "0 < smallest <= largest"),
    "DATASETS.CUSTOM.IMAGES": ("[['name', 'file.json']]", "[name, json file, folder]"),
    "DATASETS.CUSTOM.VIDEOS": ("['name']", "[name, json file, folder]"),
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
@pytest.mark.parametrize("key", ["MODEL.SOLO.SCALE_RANGES", "INPUT.VIEWS.SCALE_RANGE", "DATASETS.CUSTOM.VIDEOS"])
def test_lists_of_another_shape_are_refused_not_tripped_over(key: str, value: str) -> None:
    if value.endswith("* 5"):
        value = repr([["a", "b"]] * 5)
    with pytest.raises(ConfigError, match=key):
        load_config("", [key, value])


def test_values_that_exclude_one_another() -> None:
    for overrides, text in (
        (["MODEL.SOLO.CHANNELS", "100"], r"MODEL\.SOLO\.CHANNELS \(100\) must be a multiple of MODEL\.SOLO\.NUM_GROUPS \(32\)"),
        (["MODEL.SOLO_TRACK.EMB.CHANNELS", "100"], r"MODEL\.SOLO_TRACK\.EMB\.CHANNELS \(100\) must be a multiple"),
        (["MODEL.SMALL_RESNET.CHANNELS", "[32, 64, 64, 128]"], r"neighbours must differ"),
        (["MODEL.SOLO.FREEZE", "True", "MODEL.SOLO_TRACK.EMB.ENABLED", "False"], r"nothing to train"),
        (["INPUT.STRETCH.LOW", "60.0", "INPUT.STRETCH.HIGH", "40.0"], r"INPUT\.STRETCH\.LOW must be below INPUT\.STRETCH\.HIGH"),
        (["MODEL.SOLO_TRACK.EMB.ENABLED", "False"], r"use DistanceTracker or IoUTracker"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_config("", overrides)
    load_config("", ["MODEL.SOLO_TRACK.EMB.ENABLED", "False", "TRACKER_HEADS.TRACKER_NAME", "IoUTracker"])
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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ("dot", 1.0)),
        (["MODEL.SOLO_TRACK.EMB.SCALE", "3.0"], ("dot", 3.0)),
        (["MODEL.SOLO_TRACK.EMB.SIM", "cosine", "MODEL.SOLO_TRACK.EMB.TEMPERATURE", "0.1"], ("cosine", 10.0)),
        (["MODEL.SOLO_TRACK.EMB.SCALE", "3.0", "TRACKER_HEADS.METRIC", "cosine"], ("cosine", 1.0)),
        (["MODEL.SOLO_TRACK.EMB.SIM", "cosine", "TRACKER_HEADS.METRIC", "dot"], ("dot", 1.0)),
        (["MODEL.SOLO_TRACK.EMB.SIM", "cosine", "TRACKER_HEADS.SCALE", "7.0"], ("cosine", 7.0)),
    ],
)
def test_tracker_similarity(overrides: list[str], expected: tuple[str, float]) -> None:
    assert tracker_similarity(load_config("", overrides)) == expected


# ---- no key is dead


class KeysRead(ast.NodeVisitor):
    """Config keys that a module reads: chains of attributes that begin with a config, also by way of ``solo = cfg.MODEL.SOLO``."""

    def __init__(self) -> None:
        self.aliases: list[dict[str, str]] = [{}]
        self.found: set[str] = set()

    def path(self, node: ast.AST) -> str | None:
        """Dotted key that an expression stands for, "" for a whole config."""
        if isinstance(node, ast.Name):
            names = {"cfg": "", "variant": ""} | {name: key for scope in self.aliases for name, key in scope.items()}
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            if node.attr in ("cfg", "_cfg"):
                return ""
            base = self.path(node.value)
            return None if base is None else f"{base}.{node.attr}".lstrip(".")
        return None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.aliases.append({})
        self.generic_visit(node)
        self.aliases.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name) and self.path(value):
                    self.aliases[-1][name.id] = self.path(value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load) and self.path(node):
            self.found.add(self.path(node))
        self.generic_visit(node)


def keys_read(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == "config.py":  # what sets and checks the keys does not make use of them
        tree.body = [node for node in tree.body if getattr(node, "name", "") not in ("add_solotrack_config", "check_config")]
    visitor = KeysRead()
    visitor.visit(tree)
    return visitor.found


def test_the_reader_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "class A:\n"
        "    def f(self, cfg):\n"
        "        solo, emb = cfg.MODEL.SOLO, cfg.MODEL.SOLO_TRACK.EMB\n"
        "        solo.SIGMA, [emb.DIM for _ in range(3)], self.cfg.SEED, solo.NORM.lower()\n"
        "        cfg.INPUT.FORMAT = 'RGB'\n"
        "    def g(self, solo):\n"
        "        return solo.NMS_PRE\n"
    )
    assert keys_read(path) & set(DEFAULTS) == {"MODEL.SOLO.SIGMA", "MODEL.SOLO_TRACK.EMB.DIM", "SEED", "MODEL.SOLO.NORM"}


def test_no_key_is_dead() -> None:
    sources = [*(ROOT / "solotrack").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    read = set().union(*map(keys_read, sources))
    dead = [key for key in OWN if key not in read]
    assert not dead, f"keys that nothing reads: {', '.join(dead)}"
