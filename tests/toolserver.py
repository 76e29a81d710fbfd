"""Runs command-line tools as processes of their own without importing PyTorch anew for each of them.

``python tests/toolserver.py`` is the server: it imports the libraries that the tools stand on (nothing of solotrack), then forks a process
for every job that comes as a line of json on its standard input. A job's process is a plain one: it may be killed, end with any code or
start processes itself. Jobs see no GPU, so that they do the same on every machine.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_LIBRARIES = (
    "detectron2.checkpoint",
    "detectron2.data.datasets.coco",
    "detectron2.engine",
    "detectron2.evaluation",
    "detectron2.modeling",
    "detectron2.tracking.base_tracker",
    "torch.utils.tensorboard",
)
_SECONDS = 120  # that a job may take; then it is killed


@dataclass
class Finished:
    """How a tool ended: exit code (the signal's number, negative, if it was killed) and what it wrote."""

    code: int
    out: str
    err: str


class ToolServer:
    """A running server."""

    def __init__(self) -> None:
        environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )

    def run(self, script: str | Path, *arguments: str | Path, cwd: str | Path = ROOT, setup: str = "", **environment: str) -> Finished:
        """Run a Python script to its end.

        Args:
            script: a file, relative to the repository.
            arguments: of its command line.
            cwd: folder it starts in.
            setup: Python statements executed first, in the same process.
            environment: variables added.
        """
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            job = {"argv": [str(ROOT / script), *map(str, arguments)], "cwd": str(cwd), "setup": setup, "env": environment}
            print(json.dumps({**job, "out": str(out), "err": str(err)}), file=self._process.stdin, flush=True)
            code = int(self._process.stdout.readline())
            return Finished(code, *(path.read_text(encoding="utf-8", errors="replace") for path in (out, err)))

    def tool(self, name: str, *arguments: str | Path, **options: str) -> Finished:
        """Run ``tools/<name>.py``."""
        return self.run(f"tools/{name}.py", *arguments, **options)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def tool_server() -> ToolServer:
    """The server of this process, started when first asked for."""
    server = ToolServer()
    atexit.register(server.close)
    return server


def _serve() -> None:
    for library in _LIBRARIES:
        importlib.import_module(library)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        process = os.fork()
        if process == 0:
            answers.close()
            code = _run(job)
            sys.stdout.flush()
            sys.stderr.flush()
            atexit._run_exitfuncs()
            os._exit(code)  # not by the end of the interpreter, which takes PyTorch two seconds
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(job: dict) -> int:
    """Be the job's process; returns the exit code."""

    for target, path in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
        flags = os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        handle = os.open(path, flags, 0o600)
        os.dup2(handle, target)
        os.close(handle)
    signal.alarm(_SECONDS)
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = job["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    try:
        exec(job["setup"], {})
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
