"""What a job will read is looked at before it is submitted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from launch.command import read_command
from launch.inputs import find_problems
from launch.options import Slurm, read_options
from launch.render import slurm

PRETRAIN = str(ROOT / "tools/pretrain.py")


def problems(program: str, *arguments: str, own: tuple[str, ...] = ("gpus=2",)) -> str:
    return "\n".join(find_problems(program, arguments, read_options(own, Slurm)))


def test_missing_lists_and_checkpoints_and_sizes_that_do_not_fit_are_found_at_once(videos: Path) -> None:
    found = problems("pretrain", "recipe=demo", f"data.train={videos}/train.csv", "monitor.train=no.csv", "monitor.val=nor.csv")
    assert "optim.batch (64) is larger than the data (24 videos)" in found
    assert "optim.batch=16" in found
    assert "monitor.train: manifest 'no.csv' does not exist" in found
    assert "monitor.val: manifest 'nor.csv' does not exist" in found
    found = problems("finetune", f"train={videos}/%.csv", f"test={videos}/val.csv", "splits=[1,2]", "checkpoint=runs/none")
    assert f"train: manifest '{videos}/1.csv' does not exist" in found
    assert f"train: manifest '{videos}/2.csv' does not exist" in found
    assert "checkpoint 'runs/none' does not exist" in found
    assert problems("retrieval", f"train={videos}/train.csv", f"test={videos}/val.csv", f"checkpoint={videos}") == ""


def test_a_recipe_for_gpus_fits_where_the_submitting_machine_has_none(videos: Path) -> None:
    small = ["optim.batch=8", "sce.queue=64"]
    assert problems("pretrain", "recipe=sce_r3d18_ucf101", f"data.train={videos}/train.csv", *small) == ""
    found = problems("pretrain", "recipe=sce_r3d18_ucf101", f"data.train={videos}/train.csv", *small, own=("gpus=3",))
    assert "optim.batch (8) must be divisible by processes (3)" in found


def test_own_videos_without_a_recipe_are_fitted_by_the_job_itself(videos: Path, tmp_path: Path) -> None:
    assert problems("pretrain", f"data.train={videos}") == ""
    assert read_command([PRETRAIN, f"data.train={videos}"]).run.endswith("/runs/own")


def test_cores_follow_from_workers_and_gpus_have_types() -> None:
    options = read_options(["gpus=a100:4"], Slurm)
    assert (options.gpus, options.gpu_type) == (4, "a100")
    command = read_command([PRETRAIN, "recipe=demo", "system.workers=7"])
    script = slurm(options, command, "/here")
    assert "#SBATCH --gpus-per-node=a100:4\n" in script
    assert "#SBATCH --cpus-per-task=32\n" in script, "four ranks of seven workers and one process"
    assert "#SBATCH --cpus-per-task=5\n" in slurm(read_options(["gpus=4", "cpus=5"], Slurm), command, "/here")


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run tools/launch.py slurm with a stand-in `sbatch` that says what it was given."""
    stand_in = folder / "bin/sbatch"
    stand_in.parent.mkdir(exist_ok=True)
    stand_in.write_text("#!/bin/sh\necho 77\n")
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
    command = [sys.executable, str(ROOT / "tools/launch.py"), "slurm", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_job_that_cannot_run_is_not_submitted(tmp_path: Path) -> None:
    program = ["--", PRETRAIN, "recipe=demo", "data.train=nowhere.csv", "out=run"]
    refused = launch(tmp_path, "gpus=1", *program)
    assert refused.returncode == 70
    assert "data.train: manifest 'nowhere.csv' does not exist" in refused.stderr
    assert "check_files=false" in refused.stderr
    assert "\\n" not in refused.stderr, "each refusal is on a line of its own"
    assert not (tmp_path / "run-launch").exists()
    dry = launch(tmp_path, "gpus=1", "dry_run=true", *program)
    assert dry.returncode == 0
    assert "warning: a submission would be refused: data.train: manifest 'nowhere.csv'" in dry.stderr
    assert dry.stdout.startswith("#!/bin/bash")
    unseen = launch(tmp_path, "gpus=1", "check_files=false", *program)
    assert "submitted job 77" in unseen.stdout
    assert "lists, checkpoints and sizes were not checked" in unseen.stderr
