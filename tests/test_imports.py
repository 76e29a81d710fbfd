"""Who may know whom: the rules of the package's layout, read from the imports of every module, and its tests' layout."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "solotrack"

COMMON = {"config", "errors", "files"}  # single modules that every part may use
LIBRARY = {"ops", "data", "modeling", "tracking", "evaluation", "visualization"}
# Part -> parts of solotrack that it may import besides itself.
MAY_KNOW = {
    "config": {"errors"},
    "errors": set(),
    "files": {"errors"},
    "ops": {"errors"},
    "data": {"ops"} | COMMON,
    "modeling": {"ops"} | COMMON,
    "tracking": {"ops"} | COMMON,
    "evaluation": {"ops"} | COMMON,
    "visualization": {"ops", "errors", "files"},
    "adaptation": LIBRARY | COMMON,
    "engine": LIBRARY | COMMON | {"adaptation"},
    "reproduce": COMMON | {"engine"},
    "": LIBRARY | COMMON | {"adaptation", "engine"},  # solotrack/__init__.py
}
OUTSIDE = ("tools", "launch", "projects", "tests")  # imported by nothing in the package

MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a module imports, anywhere in it; ``from a import b`` counts as a.b."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def part_of(path: Path) -> str:
    """Name of the part that a file of the package belongs to."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem.replace("__init__", "")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_knows_only_what_its_part_may(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_KNOW, f"{part} is a new part of the package: say here what it may import"
    for line, name in imported(path):
        first, _, rest = name.partition(".")
        assert first not in OUTSIDE, f"{path}:{line} imports {name}; nothing imports {first}"
        if first == "solotrack":
            known = rest.partition(".")[0]
            assert known in MAY_KNOW, f"{path}:{line} imports {name}: name the part, not what its __init__ offers"
            assert known == part or known in MAY_KNOW[part], f"{path}:{line} imports {name}; {part} must not know {known}"


def test_relative_imports_are_understood() -> None:
    """The reader of imports itself: without it the test above would pass whatever the modules do."""
    module = PACKAGE / "modeling" / "meta_arch" / "solo_track.py"
    names = {name for _, name in imported(module)}
    assert {"solotrack.modeling.solo.head.SOLOHead", "solotrack.modeling.embedding.head.EmbeddingHead", "torch.nn"} <= names
    engine = {name for _, name in imported(PACKAGE / "engine" / "trainer.py")}
    assert {"solotrack.data.loader.build_train_loader", "solotrack.engine.checkpoint.AtomicCheckpointer"} <= engine
    top = {name for _, name in imported(PACKAGE / "__init__.py")}
    assert {"solotrack.tracking", "solotrack.data.catalog.register_all", "solotrack.engine.predictor.VideoPredictor"} <= top


def test_tools_import_the_package_and_no_other_tool() -> None:
    """By their names they would be found in Detectron2's wheel, which installs a package called tools, too."""
    names = {path.stem for path in (ROOT / "tools").glob("*.py")}
    for path in (ROOT / "tools").glob("*.py"):
        for line, name in imported(path):
            assert name.partition(".")[0] not in {*OUTSIDE, *names}, f"{path}:{line} imports {name}"


# Module without a test file of its own -> the test file that has its tests, among those of what it is a piece of.
COVERED_BY = {
    "data/annotation_file.py": "data/test_coco.py",
    "data/prefetch.py": "data/test_frames.py",
    "data/synthetic_motion.py": "data/test_synthetic_scene.py",
    "data/synthetic_objects.py": "data/test_synthetic_scene.py",
    "data/synthetic_stats.py": "data/test_synthetic.py",
    "modeling/embedding/loo_null_loss.py": "modeling/embedding/test_contrast_loss.py",
    "reproduce/settings.py": "reproduce/test_tables.py",
    "tracking/offline.py": "tracking/test_seq_tracker.py",
    "visualization/colors.py": "visualization/test_overlay.py",
    "visualization/video_writer.py": "visualization/test_overlay.py",
}


def test_tests_mirror_the_package() -> None:
    missing = []
    for path in MODULES:
        inside = path.relative_to(PACKAGE).as_posix()
        if path.name == "__init__.py" or not _has_public_names(path):
            continue
        tests = ROOT / "tests" / COVERED_BY.get(inside, str(Path(inside).with_name(f"test_{path.name}")))
        if not tests.is_file() or (inside in COVERED_BY and path.stem not in tests.read_text(encoding="utf-8")):
            missing.append(f"{inside} ({tests.relative_to(ROOT)})")
    assert not missing, f"modules without tests: {', '.join(missing)}"
    stale = [name for name in COVERED_BY if not (PACKAGE / name).is_file()]
    assert not stale, f"COVERED_BY names modules that are gone: {stale}"


def _has_public_names(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") for node in body)
