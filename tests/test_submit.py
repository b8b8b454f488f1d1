"""Shards as jobs: two real local jobs of submitit prepare two shards; on SLURM it is one array."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest
from conftest import numbered_frames, run_program
from test_decode import encode


def submit(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program("data_prep/submit.py", *arguments, timeout=200, **environment)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    for index in range(6):
        encode(tmp_path / f"{index}.mp4", numbered_frames(20))
    (tmp_path / "5.mp4").write_bytes(b"")
    (tmp_path / "list.txt").write_text("".join(f"{index}.mp4 {index % 2}\n" for index in range(6)))
    return tmp_path / "list.txt"


@pytest.mark.slow
def test_two_local_jobs_prepare_two_shards(listed: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    common = ("--cluster", "local", "--shards", "2", "--cores", "1", "--wait", "--")
    result = submit(*common, "doctor.py", listed, "--out", tmp_path / "health")
    assert result.returncode == 0, result.stderr
    assert "2 jobs submitted" in result.stdout
    assert "6 files: 5 ok, 1 not a video" in result.stdout
    parts = sorted(path.name for path in (tmp_path / "health/shards").glob("part-*"))
    assert parts == ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"]
    assert len(list((tmp_path / "health-jobs").glob("*_result.pkl"))) == 2
    result = submit(*common, "shrink.py", tmp_path / "health/clean.csv", "--out", tmp_path / "small", "--short-side", "32")
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "small/manifest.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["0", "1", "0", "1", "0"]


def test_on_slurm_it_is_one_array(listed: Path, tmp_path: Path) -> None:
    """With an sbatch that writes down what it gets and answers as SLURM does."""
    pytest.importorskip("submitit")
    (tmp_path / "bin").mkdir()
    for name, script in (
        ("sbatch", f'#!/bin/sh\ncp "$1" {tmp_path}/script\necho Submitted batch job 77\n'),
        ("srun", "#!/bin/sh\n"),
    ):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    options = ("--shards", "200", "--at-once", "50", "--cores", "4", "--parameter", "slurm_partition=cpu", "--")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    result = submit(*options, "doctor.py", listed, "--out", tmp_path / "out", PATH=path)
    assert result.returncode == 0, result.stderr
    assert f"when all are done: python data_prep/doctor.py merge {tmp_path}/out" in result.stdout
    script = (tmp_path / "script").read_text()
    for line in ("--array=0-199%50", "--open-mode=append", "--partition=cpu", "--cpus-per-task=4", "--time=240"):
        assert f"#SBATCH {line}\n" in script


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shards 2", "no command: write the program"),
        ("--shards 2 -- rm -rf x --out y", "must begin with one of doctor.py, shrink.py"),
        ("--shards 2 -- doctor.py merge y", "without merge"),
        ("--shards 2 -- doctor.py x --out y --num-shards 3", "they are set here"),
        ("--shards 2 -- doctor.py x", "has no --out"),
    ],
)
def test_commands_that_make_no_sense_are_named(arguments: str, message: str) -> None:
    pytest.importorskip("submitit")
    result = submit(*arguments.split())
    assert (result.returncode, result.stderr.count("\n")) == (70, 1)
    assert message in result.stderr
