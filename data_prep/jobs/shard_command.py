"""The command line of the sharded programs: common options, one shard of the work, and the command `merge`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import command_line

from jobs.journal import Row
from jobs.sharded_job import Job
from jobs.shards import Shard
from sce_video.errors import log, printable


def main(
    arguments: Sequence[str],
    *,
    description: str | None,
    name: str,
    begin: Callable[[Sequence[str]], None],
    finish: Callable[[Job], None],
) -> None:
    """Call `begin` with the command line; for `merge FOLDER` call `finish` with the job that program `name` began there."""
    if arguments[:1] == ["merge"]:
        options = command_line.parser(description)
        options.add_argument("out", type=Path, help="the --out folder of the shards")
        finish(Job.load(options.parse_args(arguments[1:]).out, name))
    else:
        begin(arguments)


def add_manifest_and_out(options: argparse.ArgumentParser) -> None:
    """Add the manifest, --out and --root."""
    options.add_argument("manifest", help="a .csv with the column path, a list of videos, or a folder")
    options.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="a new folder, or the folder of the run to continue"
    )
    options.add_argument("--root", metavar="FOLDER", help="folder for relative paths of the manifest (default: its own)")


def do_shard(job: Job, shard: Shard, work: Callable[[list[Row]], Iterable[Row]], finish: Callable[[Job], None]) -> None:
    """Process the rest of a shard (see `Job.run`). Finish a job of one shard; for others print the `merge` command."""
    if not job.run(shard, work):
        log.info(f"shard {shard.name}: was done before")
    if shard.count == 1:
        finish(job)
    else:
        again = f"python data_prep/{job.plan['program']} merge {printable(str(job.out))}"
        print(f"shard {shard.name} is done; when all are: {again}")
