"""Shards: each item in exactly one, killed and continued without loss, joined to the same bytes."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from jobs.journal import Journal, Row, line_of
from jobs.sharded_job import Job
from jobs.shards import Shard, add_arguments, shard_of
from output_files import write_atomically

from sce_video.errors import InputError

ODD_NAMES = ["a'b.mp4", 'a"b.mp4', "a b.mp4", "-a.mp4", "a\nb.mp4", "a,b.mp4", os.fsdecode(b"a\xff.mp4"), "é😀.mp4"]
ITEMS: list[Row] = [{"id": name} for name in [*(f"{index}.mp4" for index in range(40)), *ODD_NAMES]]


def chosen(*arguments: str, **environment: str) -> Shard:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return shard_of(parser.parse_args(arguments), environment)


SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "9"}


def test_shard_is_given_or_read_from_the_scheduler() -> None:
    assert chosen() == Shard(0, 1)
    assert chosen("--num-shards", "4", "--shard-index", "3") == Shard(3, 4)
    auto = ("--shard-index", "auto")
    assert chosen(*auto, **SLURM, SLURM_ARRAY_TASK_COUNT="7") == Shard(2, 7)
    assert chosen(*auto, "--num-shards", "20", **SLURM) == Shard(5, 20)  # one failed task submitted again
    assert chosen(*auto, "--num-shards", "20", JOB_COMPLETION_INDEX="4") == Shard(4, 20)
    assert chosen(*auto, RANK="1", WORLD_SIZE="2") == Shard(1, 2)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ("--shard-index auto", {}, "none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, RANK is set"),
        ("--shard-index auto", {"JOB_COMPLETION_INDEX": "1"}, "number of shards is not known"),
        ("--shard-index auto", {**SLURM, "SLURM_ARRAY_TASK_COUNT": "2"}, "not all in a row: give --num-shards"),
        ("--shard-index auto", {"SLURM_ARRAY_TASK_ID": "5"}, "SLURM_ARRAY_TASK_MIN is not set"),
        ("--shard-index auto --num-shards 5", {"RANK": "5", "WORLD_SIZE": "9"}, "5 is outside 0..4"),
        ("--shard-index 2", {}, "needs --num-shards"),
        ("--shard-index x --num-shards 2", {}, "neither a number from 0 on nor auto"),
        ("--num-shards 2", {}, "needs --shard-index 0..1"),
        ("--num-shards 0", {}, "at least 1"),
        ("--jobs 0", {}, "at least 1"),
    ],
)
def test_shards_that_make_no_sense_are_named(arguments: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(*arguments.split(), **environment)


def rows_of(items: list[Row]) -> list[Row]:
    return [{**item, "length": len(item["id"])} for item in items]


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_merge_does_not_depend_on_the_number_of_shards(count: int, tmp_path: Path) -> None:
    for index in reversed(range(count)):
        assert Job(tmp_path / "out", "x", ITEMS, {}, count).run(Shard(index, count), rows_of)
    job = Job.load(tmp_path / "out", "x")
    assert job.merge() == rows_of(ITEMS)
    assert not job.run(Shard(0, count), rows_of)  # done before


def test_merge_names_what_is_missing_doubled_or_damaged(tmp_path: Path) -> None:
    job = Job(tmp_path / "out", "x", ITEMS, {}, 3)
    for index in (0, 2):
        job.run(Shard(index, 3), rows_of)
    lost = [item["id"] for item in ITEMS if Shard(1, 3).holds(item["id"])]
    with pytest.raises(InputError, match=f"{len(lost)} of {len(ITEMS)} items have no row, e.g. {lost[0]}: run shards 1"):
        job.merge()
    job.run(Shard(1, 3), rows_of)
    shutil.copy(job.part(Shard(1, 3)), job.part(Shard(1, 4)))
    with pytest.raises(InputError, match=f"{len(lost)} items have more than one row, e.g. {lost[0]}"):
        job.merge()
    job.part(Shard(1, 4)).unlink()
    part = job.part(Shard(2, 3))
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    with pytest.raises(InputError, match="part-00002-of-00003.jsonl is damaged"):
        job.merge()
    assert job.run(Shard(2, 3), rows_of)
    assert job.merge() == rows_of(ITEMS)


def test_another_job_or_folder_is_not_touched(tmp_path: Path) -> None:
    Job(tmp_path / "out", "x", ITEMS, {"quick": False}, 2)
    for options, count, told in (({"quick": True}, 2, "quick False there, True here"), ({"quick": False}, 3, "shards 2")):
        with pytest.raises(InputError, match=f"other settings .*{told}"):
            Job(tmp_path / "out", "x", ITEMS, options, count)
    with pytest.raises(InputError, match="made by x, not by y"):
        Job.load(tmp_path / "out", "y")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("words")
    for folder in (tmp_path / "mine", tmp_path / "mine/thesis.txt"):
        with pytest.raises(InputError, match="new or empty folder"):
            Job(folder, "x", ITEMS, {}, 1)
    with pytest.raises(InputError, match="no readable shards/plan.json"):
        Job.load(tmp_path / "mine", "x")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="occur more than once, e.g. a"):
        Job(tmp_path / "twice", "x", [{"id": "a"}, {"id": "a"}], {}, 1)


def test_journal_drops_a_line_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as kept:
        kept.append({"id": "a"})
        kept.append({"id": "b"})
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 1, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as kept:
            assert kept.rows == [{"id": "a"}]
            kept.append({"id": "c"})
        with Journal(path) as kept:
            assert kept.rows == [{"id": "a"}, {"id": "c"}]
    path.write_bytes(b"\0" * 40)  # what a crash of the machine may leave
    with Journal(path) as kept:
        assert kept.rows == []


def test_one_process_at_a_shard(tmp_path: Path) -> None:
    job = Job(tmp_path / "out", "x", ITEMS, {}, 1)

    def second(items: list[Row]) -> list[Row]:
        with pytest.raises(InputError, match="another process is at this shard"):
            Job.load(tmp_path / "out", "x").run(Shard(), rows_of)
        return rows_of(items)

    assert job.run(Shard(), second)
    assert job.merge() == rows_of(ITEMS)


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from jobs.sharded_job import Job
from jobs.shards import Shard
def work(items):
    print(len(items), flush=True)
    for item in items:
        time.sleep(0.004)
        yield {**item, "length": len(item["id"])}
Job.load(Path(sys.argv[2]), "x").run(Shard(), work)
"""


def test_killed_again_and_again_it_loses_nothing(tmp_path: Path) -> None:
    """kill -9 at various moments: each start has less to do, and the end is as if nothing had happened."""
    items = [{"id": f"{index}"} for index in range(300)]
    job = Job(tmp_path / "out", "x", items, {}, 1)
    todo = [len(items) + 1]
    while not job.part(Shard()).exists():
        command = [sys.executable, "-c", SLOW, str(ROOT / "data_prep"), str(tmp_path / "out")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            todo.append(int(process.stdout.readline()))
            assert todo[-1] < todo[-2]
            time.sleep(0.2)
            process.send_signal(signal.SIGKILL)
    assert len(todo) > 4
    assert job.merge() == rows_of(items)
    assert sorted(path.name.split("-")[0] for path in job.folder.iterdir()) == ["items.jsonl", "part", "plan.json"]


def test_atomic_write_leaves_no_half_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(OSError, match="name too long"):
        write_atomically(tmp_path / ("x" * 300), b"new")
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from output_files import *;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); write_atomically(Path(sys.argv[2]), b'x' * 5000)"
    )
    command = [sys.executable, "-c", script, str(ROOT / "data_prep"), str(tmp_path / "a")]
    assert "File too large" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_lines_hold_any_name() -> None:
    import json

    for name in ODD_NAMES:
        assert json.loads(line_of({"id": name})) == {"id": name}
        assert line_of({"id": name}).count(b"\n") == 1
