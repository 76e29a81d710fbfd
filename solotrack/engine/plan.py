"""A plan: commands, what each needs, and the files by which one can tell that it is done."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter

import torch

from ..errors import SoloTrackError

__all__ = [
    "Input",
    "PlanError",
    "Stage",
    "folder_lock",
    "log_file",
    "obstacles",
    "outdated",
    "run_plan",
    "run_stage",
    "unfinished",
    "visible_gpus",
]


class PlanError(SoloTrackError, RuntimeError):
    """Stages failed, or cannot begin; the message names them and their logs, or what is in the way."""


@dataclass(frozen=True)
class Input:
    """Files that no stage makes, such as a data set: a person puts them there.

    Attributes:
        name: for people.
        paths: it is here if any of these exists, e.g. one a layout of a data set.
    """

    name: str
    paths: tuple[str, ...]

    @property
    def here(self) -> bool:
        return any(os.path.exists(path) for path in self.paths)


@dataclass(frozen=True)
class Stage:
    """One command of a plan, with all that a launcher has to know to run it elsewhere.

    Attributes:
        name: unique in the plan.
        command: program and arguments.
        outputs: files that are there once it is done (written last, or atomically).
        needs: names of the stages that must be done before.
        inputs: what has to be there besides.
        gpus: that it takes for itself.
        hours: that it takes about, for time limits and sums; 0 where nobody worked it out.
        environment: (variable, value) pairs that the command gets.
    """

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    inputs: tuple[Input, ...] = ()
    gpus: int = 0
    hours: float = 0.0
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def done(self) -> bool:
        return all(os.path.exists(path) for path in self.outputs)


@contextmanager
def folder_lock(folder: str) -> Iterator[int]:
    """Keep other plans out of a folder while the block runs.

    The lock is that of an open file, so it goes with the last process that holds its descriptor, however that ends.

    Args:
        folder: created if need be; it gets a file ``.lock``.

    Yields:
        The descriptor, for ``pass_fds``: commands that outlive this process keep the lock.

    Raises:
        PlanError: another process has the lock.
    """
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PlanError(
                f"Another command works in {folder}, or one that it left behind. Wait until it has ended, or take another folder."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield file.fileno()


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs that this process may use."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def log_file(folder: str, stage: Stage) -> str:
    """Where ``run_plan`` lets a stage print to."""
    return os.path.join(folder, stage.name.replace("/", "_").replace(" ", "_") + ".log")


def unfinished(stages: Sequence[Stage], targets: Iterable[str] | None = None) -> list[Stage]:
    """The stages that still have to run, in the plan's order, so that the targets are done.

    What only a finished stage needs need not be there any more: weights may go once they have been scored.

    Args:
        stages: a plan.
        targets: names of stages; None: those that no other one needs.

    Raises:
        ValueError: a stage needs one that does not exist.
    """
    by_name = _by_name(stages)
    needed = {need for stage in stages for need in stage.needs}
    waiting = list(by_name.keys() - needed) if targets is None else list(targets)
    found = set()
    while waiting:
        stage = by_name[waiting.pop()]
        if stage.name not in found and not stage.done:
            found.add(stage.name)
            waiting += stage.needs
    return [stage for stage in stages if stage.name in found]


def obstacles(stages: Sequence[Stage], gpus: int) -> list[str]:
    """What keeps stages from running on a machine with so many GPUs, in words; [] if nothing does.

    If anything does, all GPUs and GPU hours that they would take are named as well.
    """
    missing = list(dict.fromkeys(item.name for stage in stages for item in stage.inputs if not item.here))
    most = max((stage.gpus for stage in stages), default=0)
    if not missing and most <= gpus:
        return []
    hours = sum(stage.gpus * stage.hours for stage in stages)
    return [
        *missing,
        *([f"{most} GPU{'s' if most > 1 else ''}"] if most else []),
        *([f"≈ {hours:.{0 if hours >= 2 else 1}f} GPU hours"] if hours else []),
    ]


def outdated(stages: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """(stage, one that it needs) of finished stages whose files are older than what they were made from."""
    by_name = _by_name(stages)
    written = {stage.name: [os.path.getmtime(path) for path in stage.outputs] for stage in stages if stage.done and stage.outputs}
    return [
        (stage, by_name[need])
        for stage in stages
        for need in stage.needs
        if stage.name in written and need in written and min(written[stage.name]) < max(written[need])
    ]


def _by_name(stages: Sequence[Stage]) -> dict[str, Stage]:
    by_name = {stage.name: stage for stage in stages}
    unknown = {need for stage in stages for need in stage.needs} - by_name.keys()
    if unknown:
        raise ValueError(f"The plan needs stages that it does not have: {', '.join(sorted(unknown))}.")
    return by_name


def run_stage(
    stage: Stage, log: str | None = None, threads: int | None = None, gpus: Sequence[str] = (), pass_fds: Sequence[int] = ()
) -> None:
    """Run a stage's command, unless it is done.

    Args:
        stage: what to run.
        log: file that takes what it prints, appended; None leaves it on the terminal.
        threads: cores it may use; None: all.
        gpus: that it alone is to see; none: it sees what this process sees.
        pass_fds: open files that it keeps, such as a lock's.

    Raises:
        PlanError: it failed, or did not write its outputs.
    """
    if stage.done:
        return
    environment = {**os.environ, **dict(stage.environment)}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if log is None:
        code = subprocess.run(stage.command, env=environment, check=False, pass_fds=pass_fds).returncode
    else:
        os.makedirs(os.path.dirname(os.path.abspath(log)), exist_ok=True)
        with open(log, "ab") as file:
            code = subprocess.run(
                stage.command, env=environment, check=False, stdout=file, stderr=subprocess.STDOUT, pass_fds=pass_fds
            ).returncode
    where = f"; its output is in {log}" if log else ""
    if code:
        raise PlanError(f"{stage.name} failed with exit code {code}{where}. Run the same command again to continue from there.")
    missing = [path for path in stage.outputs if not os.path.exists(path)]
    if missing:
        raise PlanError(f"{stage.name} ended but did not write {', '.join(missing)}{where}.")


def run_plan(
    stages: Sequence[Stage],
    logs: str,
    jobs: int = 1,
    threads: int | None = None,
    report: Callable[[Stage, str], None] | None = None,
    gpus: Sequence[str] = (),
    targets: Iterable[str] | None = None,
    pass_fds: Sequence[int] = (),
) -> None:
    """Run what is ``unfinished``, several stages side by side; a failed stage stops those that need it and no others.

    Args:
        stages: in any order.
        logs: folder for a log file a stage.
        jobs: stages run side by side.
        threads: cores each may use.
        report: called with a stage and "done", "failed" or "not run", from this thread.
        gpus: as ``visible_gpus``; stages that take some share them out.
        targets: names of the stages that are to be done in the end; None: all.
        pass_fds: open files that the commands keep, such as a lock's.

    Raises:
        PlanError: at the end, with every failure.
        ValueError: a stage needs one that does not exist, or more GPUs than there are, or stages need one another.
    """
    TopologicalSorter({stage.name: stage.needs for stage in _by_name(stages).values()}).prepare()  # its CycleError names the circle
    waiting = unfinished(stages, targets)
    greedy = [stage.name for stage in waiting if stage.gpus > len(gpus)]
    if greedy:
        raise ValueError(f"There are {len(gpus)} GPUs, and these stages need more: {', '.join(greedy)}.")
    report = report or (lambda stage, outcome: None)
    free = list(gpus)
    done = {stage.name for stage in stages} - {stage.name for stage in waiting}
    failures: dict[str, str] = {}
    running: dict[Future, tuple[Stage, list[str]]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for stage in [s for s in waiting if any(need in failures for need in s.needs)]:
                waiting.remove(stage)
                failures[stage.name] = f"{stage.name} was not run: it needs {', '.join(need for need in stage.needs if need in failures)}."
                report(stage, "not run")
            for stage in [s for s in waiting if done.issuperset(s.needs)]:
                if len(running) < jobs and stage.gpus <= len(free):
                    waiting.remove(stage)
                    taken, free = free[: stage.gpus], free[stage.gpus :]
                    running[pool.submit(run_stage, stage, log_file(logs, stage), threads, taken, pass_fds)] = (stage, taken)
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                stage, taken = running.pop(future)
                free += taken
                error = future.exception()
                if error is None:
                    done.add(stage.name)
                elif isinstance(error, (PlanError, OSError)):
                    failures[stage.name] = str(error)
                else:
                    raise error
                report(stage, "failed" if error else "done")
    if failures:
        raise PlanError("\n".join(failures.values()))
