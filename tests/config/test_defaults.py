"""The keys: that every one does something, and what follows from them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from detectron2.config import get_cfg

from solotrack.config import add_solotrack_config, check_config, load_config, tracker_similarity
from solotrack.config.checks import flatten

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULTS = flatten(load_config())
OWN = sorted(set(DEFAULTS) - set(flatten(get_cfg())))  # keys that Detectron2 does not have


def test_defaults_pass() -> None:
    cfg = get_cfg()
    add_solotrack_config(cfg)
    check_config(cfg)
    assert flatten(cfg) == DEFAULTS and len(OWN) > 90


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
    if path.parent.name == "config":  # what sets and checks the keys does not make use of them
        tree.body = [node for node in tree.body if getattr(node, "name", "") in ("check_device", "tracker_similarity")]
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
