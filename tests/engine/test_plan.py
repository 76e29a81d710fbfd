"""Plans: nothing is done twice, nothing before what it needs, and a failure stops only what depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from solotrack.engine.plan import Input, PlanError, Stage, folder_lock, obstacles, outdated, run_plan, run_stage, unfinished, visible_gpus

# Command line of a stage: writes the files named, and notes its first one in the journal.
WRITE = "import sys, pathlib; j, *outs = sys.argv[1:]; open(j, 'a').write(outs[0] + '\\n'); [pathlib.Path(o).touch() for o in outs]"


def stage(folder: Path, name: str, needs: tuple[str, ...] = (), command: tuple[str, ...] | None = None) -> Stage:
    output = str(folder / f"{name}.out")
    return Stage(name, command or (sys.executable, "-c", WRITE, str(folder / "journal"), output), (output,), needs)


def journal(folder: Path) -> list[str]:
    path = folder / "journal"
    return [Path(line).stem for line in path.read_text().split()] if path.exists() else []


FAIL = (sys.executable, "-c", "print('the reason'); raise SystemExit(7)")


def test_a_stage_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    one = stage(tmp_path, "one")
    assert not one.done
    run_stage(one)
    assert one.done and journal(tmp_path) == ["one"]
    run_stage(one)
    assert journal(tmp_path) == ["one"]
    (tmp_path / "one.out").unlink()
    run_stage(one)
    assert journal(tmp_path) == ["one", "one"]


def test_a_stage_is_done_with_all_its_outputs(tmp_path: Path) -> None:
    outputs = (str(tmp_path / "a"), str(tmp_path / "b"))
    Path(outputs[0]).touch()
    two = Stage("two", (sys.executable, "-c", WRITE, str(tmp_path / "journal"), *outputs), outputs)
    assert not two.done
    run_stage(two)
    assert two.done


def test_failures_of_a_stage(tmp_path: Path) -> None:
    log = str(tmp_path / "logs" / "x.log")
    with pytest.raises(PlanError, match=r"^bad failed with exit code 7; its output is in .*x\.log\. Run the same command again"):
        run_stage(stage(tmp_path, "bad", command=FAIL), log)
    assert Path(log).read_text() == "the reason\n"
    with pytest.raises(PlanError, match=r"^lazy ended but did not write .*lazy\.out\.$"):
        run_stage(stage(tmp_path, "lazy", command=(sys.executable, "-c", "")))
    with pytest.raises(FileNotFoundError):
        run_stage(stage(tmp_path, "none", command=("no-such-program-here",)))


def test_log_is_appended_and_threads_reach_the_command(tmp_path: Path) -> None:
    show = (sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])")
    log = tmp_path / "a.log"
    for threads in (3, 5):
        with pytest.raises(PlanError, match="did not write"):
            run_stage(stage(tmp_path, "a", command=show), str(log), threads)
    assert log.read_text().split() == ["3", "5"]


@pytest.mark.parametrize("jobs", [1, 3])
def test_order(tmp_path: Path, jobs: int) -> None:
    needs = {"e": ("c", "d"), "d": ("b",), "c": ("a",), "b": (), "a": ()}
    reports = []
    run_plan(
        [stage(tmp_path, name, n) for name, n in needs.items()],
        str(tmp_path / "logs"),
        jobs,
        report=lambda s, o: reports.append((s.name, o)),
    )
    ran = journal(tmp_path)
    assert sorted(ran) == list("abcde")
    assert all(ran.index(name) > ran.index(need) for name, n in needs.items() for need in n)
    assert sorted(reports) == [(name, "done") for name in "abcde"]


def test_stages_run_side_by_side_up_to_the_number_of_jobs(tmp_path: Path) -> None:
    """Each waits for the other's mark, so they end only if both run; and a third is not there meanwhile."""
    meet = (
        "import sys, time, pathlib; me, other, third, out = map(pathlib.Path, sys.argv[1:]); me.touch(); end = time.monotonic() + 30\n"
        "while not other.exists() and time.monotonic() < end: time.sleep(0.01)\n"
        "assert other.exists() and not third.exists(); out.touch()"
    )
    marks = {name: str(tmp_path / f"{name}.mark") for name in "abc"}

    def command(me: str, other: str) -> tuple[str, ...]:
        return sys.executable, "-c", meet, marks[me], marks[other], marks["c"], str(tmp_path / f"{me}.out")

    third = (
        sys.executable,
        "-c",
        "import sys, pathlib; [pathlib.Path(p).touch() for p in sys.argv[1:]]",
        marks["c"],
        str(tmp_path / "c.out"),
    )
    stages = [
        stage(tmp_path, "a", (), command("a", "b")),
        stage(tmp_path, "b", (), command("b", "a")),
        stage(tmp_path, "c", ("a", "b"), third),
    ]
    run_plan(stages, str(tmp_path / "logs"), jobs=2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_stops_those_that_need_it_and_no_others(tmp_path: Path, jobs: int) -> None:
    stages = [
        stage(tmp_path, "bad", command=FAIL),
        stage(tmp_path, "child", ("bad",)),
        stage(tmp_path, "grandchild", ("child", "good")),
        stage(tmp_path, "good"),
        stage(tmp_path, "gone", command=("no-such-program-here",)),
    ]
    reports = {}
    with pytest.raises(PlanError) as caught:
        run_plan(stages, str(tmp_path / "logs"), jobs, report=lambda s, outcome: reports.update({s.name: outcome}))
    assert journal(tmp_path) == ["good"]
    assert reports == {"bad": "failed", "child": "not run", "grandchild": "not run", "good": "done", "gone": "failed"}
    text = str(caught.value)
    assert "bad failed with exit code 7" in text and "bad.log" in text and "no-such-program-here" in text
    assert "child was not run: it needs bad." in text and "grandchild was not run: it needs child." in text
    assert (tmp_path / "logs" / "bad.log").read_text() == "the reason\n"


def test_a_plan_continues_where_it_stopped(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    fickle = "import sys, pathlib; assert pathlib.Path(sys.argv[1]).exists(); pathlib.Path(sys.argv[2]).touch()"
    stages = [
        stage(tmp_path, "a"),
        stage(tmp_path, "b", ("a",), (sys.executable, "-c", fickle, str(flag), str(tmp_path / "b.out"))),
        stage(tmp_path, "c", ("b",)),
    ]
    with pytest.raises(PlanError):
        run_plan(stages, str(tmp_path / "logs"))
    assert journal(tmp_path) == ["a"]
    flag.touch()
    run_plan(stages, str(tmp_path / "logs"))
    assert journal(tmp_path) == ["a", "c"]
    run_plan(stages, str(tmp_path / "logs"))
    assert journal(tmp_path) == ["a", "c"]


def test_plans_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stages that it does not have: d, e\."):
        run_plan([stage(tmp_path, "a", ("d", "b")), stage(tmp_path, "b", ("e",))], str(tmp_path))
    with pytest.raises(ValueError, match=r"cycle"):
        run_plan([stage(tmp_path, "a", ("b",)), stage(tmp_path, "b", ("a",)), stage(tmp_path, "c")], str(tmp_path))
    assert journal(tmp_path) == []


def test_what_only_a_finished_stage_needs_is_not_done_again(tmp_path: Path) -> None:
    """Weights may go once they have been scored."""
    stages = [stage(tmp_path, "train"), stage(tmp_path, "score", ("train",)), stage(tmp_path, "other", ("train",))]
    assert [s.name for s in unfinished(stages)] == ["train", "score", "other"]
    (tmp_path / "score.out").touch()
    assert [s.name for s in unfinished(stages, ["score"])] == []
    assert [s.name for s in unfinished(stages)] == ["train", "other"]
    (tmp_path / "other.out").touch()
    assert unfinished(stages) == []
    run_plan(stages, str(tmp_path / "logs"))
    assert journal(tmp_path) == []


def test_outdated(tmp_path: Path) -> None:
    stages = [stage(tmp_path, "a"), stage(tmp_path, "b", ("a",)), stage(tmp_path, "c", ("a", "b"))]
    for name, second in (("a", 100), ("b", 200)):
        (tmp_path / f"{name}.out").touch()
        os.utime(tmp_path / f"{name}.out", (second, second))
    assert outdated(stages) == [], "what is not made yet is not old"
    os.utime(tmp_path / "b.out", (100, 100))
    assert outdated(stages) == [], "nor what was written within a clock tick"
    os.utime(tmp_path / "b.out", (200, 200))
    (tmp_path / "c.out").touch()
    os.utime(tmp_path / "a.out", (300, 300))
    assert outdated(stages) == [(stages[1], stages[0])]
    os.utime(tmp_path / "c.out", (150, 150))
    assert outdated(stages) == [(stages[1], stages[0]), (stages[2], stages[0]), (stages[2], stages[1])]


def test_targets(tmp_path: Path) -> None:
    stages = [stage(tmp_path, "a"), stage(tmp_path, "b", ("a",)), stage(tmp_path, "c", ("a",)), stage(tmp_path, "d", ("c",))]
    run_plan(stages, str(tmp_path / "logs"), targets=["b"])
    assert journal(tmp_path) == ["a", "b"]
    run_plan(stages, str(tmp_path / "logs"), targets=[])
    assert journal(tmp_path) == ["a", "b"]
    run_plan(stages, str(tmp_path / "logs"))
    assert journal(tmp_path) == ["a", "b", "c", "d"]


def test_obstacles(tmp_path: Path) -> None:
    coco = Input("COCO", (str(tmp_path / "one"), str(tmp_path / "other")))
    train = Stage("train", ("x",), (), inputs=(coco,), gpus=8, hours=9.5)
    score = Stage("score", ("x",), (), inputs=(coco, Input("YouTube-VIS", (str(tmp_path / "vis"),))), gpus=1, hours=0.5)
    assert obstacles([train, score], 0) == ["COCO", "YouTube-VIS", "8 GPUs", "≈ 76 GPU hours"]
    assert obstacles([score], 1) == ["COCO", "YouTube-VIS", "1 GPU", "≈ 0.5 GPU hours"]
    (tmp_path / "other").touch()
    (tmp_path / "vis").touch()
    assert obstacles([train, score], 7) == ["8 GPUs", "≈ 76 GPU hours"]
    assert obstacles([train, score], 8) == []
    assert obstacles([Stage("cpu", ("x",), (), inputs=(Input("weights.pth", ("no/such",)),))], 0) == ["weights.pth"]


def test_gpus_are_shared_out(tmp_path: Path) -> None:
    """Each stage sees GPUs of its own; two that need all of them run one after the other, whatever the number of jobs."""
    code = (
        "import os, sys, time, pathlib; folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]; mine = os.environ['CUDA_VISIBLE_DEVICES']\n"
        "locks = [folder / f'gpu{i}' for i in mine.split(',')]; [lock.mkdir() for lock in locks]; time.sleep(0.1)\n"
        "[lock.rmdir() for lock in locks]; (folder / f'{name}.out').write_text(mine)"
    )

    def taking(name: str, gpus: int) -> Stage:
        return Stage(name, (sys.executable, "-c", code, str(tmp_path), name), (str(tmp_path / f"{name}.out"),), gpus=gpus)

    stages = [taking("a", 1), taking("b", 2), taking("c", 1), taking("d", 2)]
    run_plan(stages, str(tmp_path / "logs"), jobs=4, gpus=["5", "7"])
    seen = {s.name: (tmp_path / f"{s.name}.out").read_text() for s in stages}
    assert {seen["a"], seen["c"]} <= {"5", "7"} and sorted(seen["b"].split(",")) == sorted(seen["d"].split(",")) == ["5", "7"]
    with pytest.raises(ValueError, match=r"There are 2 GPUs, and these stages need more: big\."):
        run_plan([taking("big", 3)], str(tmp_path / "logs"), gpus=["5", "7"])


def test_environment_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "outside")
    write = "import os, pathlib; pathlib.Path(os.environ['WHERE'] + '.out').touch()"
    here = str(tmp_path / "here")
    run_stage(Stage("a", (sys.executable, "-c", write), (f"{here}.out",), environment=(("WHERE", here),)))


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for value, names in (("3,6", ["3", "6"]), ("3,6,9", ["3", "6"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert visible_gpus() == names
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_gpus() == []


@pytest.mark.parametrize("logged", [True, False])
def test_commands_keep_open_files(tmp_path: Path, logged: bool) -> None:
    output = tmp_path / "there"
    with open(tmp_path / "held", "w") as file:
        code = f"import os; os.fstat({file.fileno()}); open({str(output)!r}, 'w')"
        stage = Stage("holds", (sys.executable, "-c", code), (str(output),))
        if logged:
            run_plan([stage], str(tmp_path / "logs"), pass_fds=(file.fileno(),))
        else:
            run_stage(stage, pass_fds=(file.fileno(),))
    assert output.exists()


def test_a_lock_stays_with_a_child_that_keeps_it(tmp_path: Path) -> None:
    folder = str(tmp_path / "made")
    with folder_lock(folder) as lock:
        with pytest.raises(PlanError, match=f"Another command works in {folder}"), folder_lock(folder):
            pass
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(PlanError), folder_lock(folder):
        pass
    child.communicate(b"\n")
    with folder_lock(folder):
        pass
