"""A plan: commands, what each needs, and the files by which one can tell that it is done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from graphlib import TopologicalSorter

from ..errors import SoloTrackError

__all__ = ["PlanError", "Stage", "run_plan", "run_stage"]


class PlanError(SoloTrackError, RuntimeError):
    """Stages failed; the message names them and their logs."""


@dataclass(frozen=True)
class Stage:
    """One command of a plan.

    Attributes:
        name: unique in the plan.
        command: program and arguments.
        outputs: files that are there once it is done (written last, or atomically).
        needs: names of the stages that must be done before.
    """

    name: str
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return all(os.path.exists(path) for path in self.outputs)


def run_stage(stage: Stage, log: str | None = None, threads: int | None = None) -> None:
    """Run a stage's command, unless it is done.

    Args:
        stage: what to run.
        log: file that takes what it prints, appended; None leaves it on the terminal.
        threads: cores it may use; None: all.

    Raises:
        PlanError: it failed, or did not write its outputs.
    """
    if stage.done:
        return
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if log is None:
        code = subprocess.run(stage.command, env=environment, check=False).returncode
    else:
        os.makedirs(os.path.dirname(os.path.abspath(log)), exist_ok=True)
        with open(log, "ab") as file:
            code = subprocess.run(stage.command, env=environment, check=False, stdout=file, stderr=subprocess.STDOUT).returncode
    where = f"; its output is in {log}" if log else ""
    if code:
        raise PlanError(f"{stage.name} failed with exit code {code}{where}. Run the same command again to continue from there.")
    missing = [path for path in stage.outputs if not os.path.exists(path)]
    if missing:
        raise PlanError(f"{stage.name} ended but did not write {', '.join(missing)}{where}.")


def run_plan(
    stages: Sequence[Stage], logs: str, jobs: int = 1, threads: int | None = None, report: Callable[[Stage, str], None] | None = None
) -> None:
    """Run what is not done yet, several stages side by side; a failed stage stops those that need it and no others.

    Args:
        stages: in any order.
        logs: folder for a log file a stage.
        jobs: stages run side by side.
        threads: cores each may use.
        report: called with a stage and "done", "failed" or "not run", from this thread.

    Raises:
        PlanError: at the end, with every failure.
        ValueError: a stage needs one that does not exist, or stages need one another.
    """
    unknown = {need for stage in stages for need in stage.needs} - {stage.name for stage in stages}
    if unknown:
        raise ValueError(f"The plan needs stages that it does not have: {', '.join(sorted(unknown))}.")
    TopologicalSorter({stage.name: stage.needs for stage in stages}).prepare()  # its CycleError names the circle
    report = report or (lambda stage, outcome: None)
    waiting = list(stages)
    done: set[str] = set()
    failures: dict[str, str] = {}
    running: dict[Future, Stage] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for stage in [s for s in waiting if any(need in failures for need in s.needs)]:
                waiting.remove(stage)
                failures[stage.name] = f"{stage.name} was not run: it needs {', '.join(need for need in stage.needs if need in failures)}."
                report(stage, "not run")
            for stage in [s for s in waiting if done.issuperset(s.needs)][: jobs - len(running)]:
                waiting.remove(stage)
                log = os.path.join(logs, stage.name.replace("/", "_").replace(" ", "_") + ".log")
                running[pool.submit(run_stage, stage, log, threads)] = stage
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                stage = running.pop(future)
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
