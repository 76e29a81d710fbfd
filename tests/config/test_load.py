"""Loading: files, overrides, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from solotrack.config import ConfigError, load_config
from solotrack.config.checks import flatten

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG_FILES = sorted((ROOT / "projects").rglob("*.yaml"))


DEFAULTS = flatten(load_config())
OWN = sorted(set(DEFAULTS) - set(flatten(get_cfg())))  # keys that Detectron2 does not have


def write(path: Path, tree: object) -> str:
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def nested(key: str, value: object) -> dict:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


# ---- what is accepted


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: str(path.relative_to(ROOT / "projects")))
def test_config_files_of_the_projects_load(path: Path) -> None:
    cfg = load_config(str(path))
    if "_BASE_" in path.read_text(encoding="utf-8"):
        assert flatten(cfg) != DEFAULTS


def test_a_dumped_config_loads_again(tmp_path: Path) -> None:
    """config.yaml beside a checkpoint is how a model is used later."""
    changes = ["MODEL.SOLO.SIGMA", "0.3", "DATASETS.CUSTOM.VIDEOS", "[['a', 'a.json', 'frames']]", "TRACKER_HEADS.NULL_LOGIT", "1.5"]
    cfg = load_config("", changes)
    again = load_config(write(tmp_path / "config.yaml", cfg.dump()))
    assert {key: flatten(again)[key] for key in OWN} == {key: flatten(cfg)[key] for key in OWN}


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
    for key in ("MODEL.SOLO_TRACK.EMB.NULL_LOGIT", "MODEL.SOLO_TRACK.VIDEO.NULL_SIM", "TRACKER_HEADS.NULL_LOGIT"):
        assert flatten(load_config("", [key, "None"]))[key] is None
        assert flatten(load_config("", [key, "-1.5"]))[key] == -1.5
        assert flatten(load_config("", [key, "2"]))[key] == 2
        with pytest.raises(ConfigError, match=rf"{key} is 'low'; it must be a number or None\."):
            load_config("", [key, "low"])
