"""Rendered scripts equal the reviewed files, and the shell code decides correctly whether to restart.

python tests/test_launch.py    # rewrites the files in tests/data/launch/; review them before the commit
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run_tool
from launch import check, program, render
from launch.command import read_command, split
from launch.options import PLACES, Local, Slurm, read_options

from sce_video.errors import InputError

GOLDEN = ROOT / "tests/data/launch"
PRETRAIN = str(ROOT / "tools/pretrain.py")
RUN = ["recipe=sce_r3d50_k400_16f", "data.train=/data/k400/train.csv", "out=/data/runs/k400"]


def rendered() -> dict[str, str]:
    command = read_command([PRETRAIN, *RUN])._replace(words=["tools/pretrain.py", *RUN])
    there = ["python=/opt/sce/bin/python", "nodes=4", "gpus=8"]
    slurm = read_options([*there, "partition=gpu", "account=lab", "cpus=96", "time=12:00:00", "extra=--exclusive --mem=0"], Slurm)
    contained = read_options(["nodes=2", "container=lab/sce:1", "mounts=/data", "setup=/data/my env.sh"], Slurm)
    return {
        "slurm.sh": render.slurm(slurm, command, "/home/ann/sce_video"),
        "slurm_container.sh": render.slurm(contained, command, "/home/ann/sce_video"),
        "local.sh": render.local(read_options([*there[:1], "processes=8", "gpus=8"], Local), command),
        "machine_2_of_4.sh": render.local(read_options([*there, "node=2", "head=host0"], Local), command),
    }


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("*")))
def test_what_is_rendered_is_what_was_reviewed(name: str) -> None:
    assert rendered()[name] == (GOLDEN / name).read_text()


@pytest.mark.parametrize("name", ["slurm.sh", "slurm_container.sh", "local.sh", "machine_2_of_4.sh"])
def test_bash_and_shellcheck_accept_every_script(name: str, tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    path.write_text("#!/bin/bash\n" + rendered()[name])
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).stderr == b""
    if shutil.which("shellcheck"):
        # SC2054 mistakes the commas of --signals-to-handle for separators; SC1128 reports the second shebang line.
        result = subprocess.run(["shellcheck", "-e", "SC2054,SC1128", path], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout


def run_by(script: str, environment: dict[str, str], folder: Path) -> list[str]:
    """Return the words after `python` that bash makes of a script."""
    (folder / "python").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    (folder / "python").chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(["bash", "-c", script], env={**environment, "PATH": path}, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


@pytest.mark.parametrize("place", ["kubernetes", "skypilot"])
def test_the_examples_for_clouds_start_a_program_that_accepts_its_options(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = yaml.safe_load((ROOT / f"examples/launch/{place}.yaml").read_text())
    if place == "kubernetes":
        trainer = example["spec"]["trainer"]
        assert (example["apiVersion"], example["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
        assert (trainer["numNodes"], trainer["resourcesPerNode"]["limits"]) == (4, {"nvidia.com/gpu": 8})
        script, environment = trainer["command"][2], {"PET_NODE_RANK": "2", "PET_MASTER_ADDR": "10.0.0.1"}
    else:
        assert example["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
        script = example["run"]
        environment = {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    program, target, *words = run_by(script, environment, tmp_path)
    assert (program, target) == ("tools/launch.py", "local")
    own, command = split(words)
    options = read_options(own, Local)
    assert (options.nodes, options.node, options.head, options.gpus) == (4, 2, "10.0.0.1", 8)
    monkeypatch.chdir(ROOT)
    assert read_command(command).run == "/data/runs/k400"


ODD = ["it's", 'a "b"', "$(touch marker)", "`touch marker`", "a;touch marker", "*", "-x", "~", "#", "ü", "a\\b"]


def test_no_value_is_taken_for_shell_code(tmp_path: Path) -> None:
    """Each unusual value reaches its variable unchanged, and no part of it is executed."""
    words = render.assignments({"WORDS": ODD, **{f"WORD_{place}": word for place, word in enumerate(ODD)}})
    script = words + "printf '%s\\0' \"${WORDS[@]}\" " + " ".join(f'"$WORD_{place}"' for place in range(len(ODD)))
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split("\0")[:-1] == ODD * 2
    assert list(tmp_path.iterdir()) == []


def status(**fields: Any) -> str:
    return json.dumps({"status": "running", "exit_code": None, "reason": "", "step": 3, **fields}, indent=2) + "\n"


PREEMPTED = status(status="preempted", exit_code=75, reason="SIGTERM: saved at step 12")
BY_HAND = status(status="preempted", exit_code=75, reason="file /data/runs/k400/STOP: saved at step 12")
LOST = status(status="failed", exit_code=1, reason='RuntimeError: "status": "completed", said rank 3')
BAD = status(status="failed", exit_code=70, reason="sce.coeff (2) must be in [0, 1]")
DONE = status(status="completed", exit_code=0)
# name: code of the start, status.json before and after it, noticed, step before and after -> move, result, words
JUDGED: dict[str, tuple[int, str, str, str, int, int, str]] = {
    "completed": (0, "", DONE, "", 0, 40, "done 0 completed"),
    "completed, though torchrun does not say so": (1, "", DONE, "", 0, 40, "done 0 completed"),
    "completed long ago is nothing": (1, DONE, DONE, "", 40, 40, "again 75 ended with code 1; status: none"),
    "bad options": (1, "", BAD, "", 0, 0, "stop 70 not started again, the same would happen: sce.coeff (2) must"),
    "bad options, and noticed": (1, "", BAD, "yes", 0, 0, "stop 70 not started again"),
    "killed": (137, "", status(), "", 0, 4, "again 75 ended with code 137; status: running"),
    "a dead machine": (1, "", LOST, "", 0, 4, "again 75 ended with code 1; status: failed, RuntimeError"),
    "signalled past us": (1, "", PREEMPTED, "", 0, 12, "again 75"),
    "stopped by hand": (1, "", BY_HAND, "", 0, 12, "stop 75 stopped by hand (file /data/runs/k400/STOP"),
    "asked by us": (1, "", BY_HAND, "yes", 0, 12, "again 75 ended with code 1; status: preempted"),
    "asked before it could write anything": (143, "", "", "yes", 0, 0, "again 75"),
    "nothing written": (1, "", "", "", 0, 0, "again 75 ended with code 1; status: none written"),
}


def judge(tmp_path: Path, before: str, steps: tuple[int, ...], *starts: str, most: int = 20) -> list[str]:
    """What restart.sh says after each of these starts (shell code that plays one), as `move result why`."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / f"checkpoints/step_{steps[0]:08d}").mkdir()
    if before:
        (run / "status.json").write_text(before)
    head = render.assignments({"RUN": str(run), "STOP_SECONDS": 5, "MAX_RESTARTS": most})
    plays = [f'begin\n{start}\njudge "$code"\necho "$move $result $why"\n' for start in starts]
    script = head + render.shell_code("restart") + "".join(plays)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.splitlines()


def play(run: Path, code: int, after: str, step: int, noticed: str = "") -> str:
    words = render.assignments({"code": code, "noticed": noticed, "after": after})
    return f'{words}printf %s "$after" >{run}/status.json; mkdir -p {run}/checkpoints/step_{step:08d}'


@pytest.mark.parametrize("name", JUDGED)
def test_a_start_is_judged_by_its_run_folder(name: str, tmp_path: Path) -> None:
    code, before, after, noticed, step_before, step_after, expected = JUDGED[name]
    start = play(tmp_path / "run", code, after, step_after, noticed)
    (said,) = judge(tmp_path, before, (step_before,), start)
    assert said.startswith(expected), said


def test_two_starts_without_progress_are_a_crash_loop_and_progress_forgives(tmp_path: Path) -> None:
    run = tmp_path / "run"
    starts = [play(run, 1, status(step=n), step) for n, step in enumerate([0, 4, 4, 8, 8, 8])]
    said = judge(tmp_path, "", (0,), *starts)
    assert [line.split()[0] for line in said] == ["again", "again", "again", "again", "again", "stop"]
    assert said[-1] == (
        "stop 70 crash loop: 2 starts in a row ended without a checkpoint after step 8; the last ended with code 1; "
        "status: running"
    )


def test_being_preempted_is_no_failure_however_often(tmp_path: Path) -> None:
    starts = [play(tmp_path / "run", 1, status(step=n), 0, noticed="yes") for n in range(4)]
    assert [line.split()[:2] for line in judge(tmp_path, "", (0,), *starts, most=1)] == [["again", "75"]] * 4


def test_restarts_after_failures_are_bounded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = judge(tmp_path, "", (0,), *(play(run, 1, status(step=n), 4 * n) for n in range(1, 5)), most=2)
    assert [line.split()[0] for line in said] == ["again", "again", "stop", "stop"]
    assert "max_restarts (2) reached" in said[2]


def test_progress_is_the_sum_over_the_splits(tmp_path: Path) -> None:
    for name in ("split_1/checkpoints/step_00000040", "split_1/checkpoints/step_00000035", "split_2/checkpoints/step_3"):
        (tmp_path / "my step_9 run" / name).mkdir(parents=True)
    head = render.assignments({"RUN": str(tmp_path / "my step_9 run")})
    script = head + render.shell_code("restart") + "progress; RUN=; progress"
    assert subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout == "43\n0\n"


REFUSED = [
    (["slurm", "nodes=0"], RUN, "nodes (0) must be at least 1"),
    (["slurm", "nodess=4"], RUN, "unknown option 'nodess': did you mean nodes?"),
    (["slurm", "nodes=four"], RUN, "option nodes: Value 'four'"),
    (["slurm", "nodes"], RUN, "cannot read 'nodes': write key=value"),
    (["slurm", "nodes=1", "nodes=2"], RUN, "option nodes is given twice"),
    (["slurm", "gpus=0"], RUN, "without GPUs (gpus=0) give processes="),
    (["slurm", "processes=9"], RUN, "processes (9) must be at most gpus (8)"),
    (["slurm", "time=soon"], RUN, "time (soon) must be as in 30, 24:00:00 or 2-12"),
    (["slurm", "partition=a b"], RUN, "partition (a b) must be a name without spaces"),
    (["slurm", "partition=a\n#SBATCH --uid=0"], RUN, "must be one line without control characters"),
    (["slurm", "extra='"], RUN, "extra (') must be words as in a shell: No closing quotation"),
    (["slurm", "stop_seconds=300"], RUN, "stop_seconds (300) must be below notice_seconds (300)"),
    (["slurm", "logs=a\\b"], RUN, "must be without backslashes"),
    (["slurm", "mounts=/data"], RUN, "mounts= is for container="),
    (["slurm"], ["recipe=sce_r3d51"], "recipe 'sce_r3d51' is not one of"),
    (["slurm"], ["recipe=sce_r3d18_k400"], "option data.train must be given"),
    (["slurm"], [*RUN, "sce.coef=1"], "unknown option 'sce.coef': did you mean sce.coeff?"),
    (["slurm"], [*RUN, "sce.queue=10"], "sce.queue (10) must hold at least one step's keys"),
    (["local", "processes=2", "nodes=2"], RUN, "with several machines give head="),
    (["local", "processes=2", "node=1"], RUN, "node (1) must be in 0..nodes - 1 (0)"),
]


@pytest.mark.parametrize(("own", "options", "message"), REFUSED, ids=[" ".join(c[0] + c[1][-1:]) for c in REFUSED])
def test_bad_values_are_refused_before_anything_waits_in_a_queue(own: list[str], options: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        render_as_given(own[0], own[1:], [PRETRAIN, *options])
    assert message in str(caught.value)


def render_as_given(place: str, own: list[str], words: list[str]) -> None:
    options = read_options(own, PLACES[place])
    command = read_command(words)
    if isinstance(options, Slurm):
        render.slurm(options, command, "/")


def test_programs_are_known_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        (["tools/pretrian.py"], "'tools/pretrian.py' is no program here"),
        (["own.py", "x=1"], "own.py is not one of ours: give its run folder, out="),
        ([PRETRAIN, "name=a\nb"], "without control characters"),
    ):
        (tmp_path / "own.py").touch()
        with pytest.raises(InputError) as caught:
            read_command(words)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="no program: write it and its options after --"):
        split(["nodes=4"])
    assert split(["nodes=4", "--", "a.py", "--", "b"]) == (["nodes=4"], ["a.py", "--", "b"])


def test_the_run_folder_is_settled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's own choice, as an absolute path, quoted for Hydra if necessary."""
    monkeypatch.chdir(tmp_path)
    assert read_command([PRETRAIN, "name=mine"]).run == f"{tmp_path}/runs/mine"
    finetune = [str(ROOT / "tools/finetune.py"), "train=synthetic", "test=synthetic", "checkpoint=runs/demo"]
    assert read_command(finetune).words[-1] == f"out={tmp_path}/runs/finetune_demo"
    odd = read_command([PRETRAIN, "out='it\\'s (mine) = \"x\"'"])
    assert odd.run == f'{tmp_path}/it\'s (mine) = "x"'
    assert read_command(odd.words).run == odd.run, "what was quoted reads as itself"
    (tmp_path / "folder/recipe").mkdir(parents=True)
    (tmp_path / "folder/recipe/own.yaml").write_text((ROOT / "configs/pretrain/recipe/demo.yaml").read_text())
    own = read_command([PRETRAIN, "--config-dir", "folder", "recipe=own", "name=theirs"])
    assert own.run == f"{tmp_path}/runs/theirs"
    evaluate = [str(ROOT / "tools/evaluate.py"), "train=synthetic", "test=synthetic", "checkpoint=runs/demo"]
    assert read_command(evaluate).run == "", "an evaluation keeps none"


def test_help_shows_commands_and_where_there_is_no_slurm_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = ast.get_docstring(ast.parse((ROOT / "tools/launch.py").read_text())) or ""
    program.main(["--help"], usage)
    shown = capsys.readouterr().out
    assert len([line for line in shown.splitlines() if "tools/launch.py" in line]) >= 4
    assert "max_restarts" in shown
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as ended:
        program.main(["slurm", "--", PRETRAIN], usage)
    assert ended.value.code == 70
    assert "there is no sbatch here" in capsys.readouterr().err


@pytest.mark.slow
def test_check_reports_every_process(tmp_path: Path) -> None:
    result = run_tool("launch", "check", cwd=tmp_path, processes=2)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("processes: 2 on 1 machine", "backend: gloo; all-reduce ok", "clocks: ", "disk: ", "open files", "torch 2"):
        assert words in result.stdout
    assert result.stdout.count("processes: 2 on") == 1, "once, not by every rank"


def test_check_names_what_would_spoil_a_run() -> None:
    good = {
        "host": "a",
        "device": "cpu, 2 cores",
        "free": 100.0,
        "shared": 10.0,
        "open files": 65536,
        "processes": -1,
        "versions": {"sce_video": "1", "torch": "2", "av": "18", "decord": "", "decord2": "", "torchcodec": ""},
        "time": 100.0,
    }
    fine = {"backend": "nccl", "right": True, "rate": 10.0}
    lines, problems = check.page([good, {**good, "host": "b"}], fine)
    assert problems == []
    assert "processes: 2 on 2 machine(s): a, b" in lines
    assert "limits: 65,536 open files, unlimited processes" in lines
    for change, words in (
        ({"time": 190.0}, "clocks are 90.0 s apart"),
        ({"free": 1.0}, "only 1 GB free"),
        ({"open files": 256}, "only 256 open files allowed: ulimit -n 4096"),
        ({"versions": {**good["versions"], "torch": "3"}}, "machines run different versions"),
    ):
        _, (problem,) = check.page([good, {**good, **change}], fine)
        assert words in problem
    assert check.page([good], {**fine, "right": False})[1] == [
        "all-reduce gives a wrong sum: check drivers and network before training"
    ]
    assert "decord 0.6" in check.notes({"decord": "0.6.0", "decord2": ""})[0]


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for file, text in rendered().items():
        (GOLDEN / file).write_text(text)
    sys.exit(0)
