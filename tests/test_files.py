"""A file is either its old self or the whole new one, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from solotrack.files import atomic_write


@pytest.mark.parametrize(("mode", "content"), [("w", "Grüße\n"), ("wb", b"\x00\xff")])
def test_writes_and_makes_the_folder(tmp_path: Path, mode: str, content: str | bytes) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists(), "the name is given at the end"
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))
    assert os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("old", ["old", None])
def test_an_error_leaves_the_old_content(tmp_path: Path, error: BaseException, old: str | None) -> None:
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write("half of the new cont")
        file.flush()
        raise error
    assert os.listdir(tmp_path) == ([] if old is None else ["file.txt"])
    assert old is None or path.read_text() == old


def test_json_that_cannot_be_written_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("[1]")
    with pytest.raises(TypeError), atomic_write(path) as file:
        json.dump([1, 2, object()], file)
    assert path.read_text() == "[1]" and os.listdir(tmp_path) == ["file.json"]


def test_a_killed_process_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    script = f"""
import os, signal
from solotrack_files import atomic_write
with atomic_write({str(path)!r}) as file:
    file.write("new" * 10000)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert _run(script).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (stray,) = (name for name in os.listdir(tmp_path) if name != "file.txt")
    assert stray.startswith(".file.txt.") and stray.endswith(".part"), "what a kill leaves can be told from results"
    with atomic_write(path) as file:
        file.write("newer")
    assert path.read_text() == "newer"


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_full_disk_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    script = f"""
import resource
from solotrack_files import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # writing fails beyond, as on a full disk
try:
    with atomic_write({str(path)!r}) as file:
        file.write("new" * 10000)
except OSError as error:
    print(type(error).__name__)
"""
    done = _run(script)
    assert (done.returncode, done.stdout.strip()) == (0, "OSError"), done.stderr
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o007])
def test_permissions_are_those_of_a_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_write(tmp_path / "atomic") as file:
            file.write("x")
        (tmp_path / "plain").write_text("x")
        assert os.umask(umask) == umask, "the process's mask is as it was"
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")}
    assert modes == {0o666 & ~umask}


def test_a_folder_of_that_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "taken") as file:
        file.write("x")
    assert os.listdir(tmp_path) == ["taken"]


def _run(script: str) -> subprocess.CompletedProcess:
    """Run a script that knows solotrack/files.py alone, without the seconds that importing PyTorch takes."""
    load = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("solotrack_files", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.modules["solotrack_files"] = module
"""
    files = Path(__file__).resolve().parent.parent / "solotrack" / "files.py"
    return subprocess.run([sys.executable, "-c", load + script, str(files)], capture_output=True, text=True, check=False)
