"""What the programs over the files of a manifest share: their first options, one shard of the work, and `merge`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import program
from endings import printable, told
from journal import Row
from parts import Job
from shards import Shard


def main(
    arguments: Sequence[str],
    *,
    description: str | None,
    name: str,
    begin: Callable[[Sequence[str]], None],
    finish: Callable[[Job], None],
) -> None:
    """Run `begin` with the command line, or for `merge FOLDER` `finish` with the job that program `name` began there."""
    with told():
        if arguments[:1] == ["merge"]:
            options = program.parser(description)
            options.add_argument("out", type=Path, help="the folder that the shards were given as --out")
            finish(Job.load(options.parse_args(arguments[1:]).out, name))
        else:
            begin(arguments)


def add_manifest_and_out(options: argparse.ArgumentParser) -> None:
    """Add the manifest, --out and --root."""
    options.add_argument("manifest", help="a .csv with the column path, a list of videos, or a folder")
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new, or one to go on with")
    options.add_argument(
        "--root", metavar="FOLDER", help="where relative paths of the manifest start (default: beside it)"
    )


def do_shard(job: Job, shard: Shard, work: Callable[[list[Row]], Iterable[Row]], finish: Callable[[Job], None]) -> None:
    """Do what is left of a shard (see `Job.run`); a single one is finished, others are told how."""
    if not job.run(shard, work):
        print(f"shard {shard.name}: was done before", file=sys.stderr)
    if shard.count == 1:
        finish(job)
    else:
        again = f"python data_prep/{job.plan['program']} merge {printable(str(job.out))}"
        print(f"shard {shard.name} is done; when all are: {again}")
