"""Choose the shard of a run, from the command line or from the environment variables of a scheduler.

The shard of an item is a hash of its id, so that it depends on neither the order nor the other items.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from sce_video.errors import InputError


@dataclass(frozen=True)
class Shard:
    """Shard `index`, counted from 0, of `count`."""

    index: int = 0
    count: int = 1

    def holds(self, item_id: str) -> bool:
        """Return whether the item belongs to this shard: the hash of its id modulo the number of shards."""
        digest = hashlib.blake2b(os.fsencode(item_id), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    @property
    def name(self) -> str:
        """The shard in file names: 00001-of-00004."""
        return f"{self.index:05d}-of-{self.count:05d}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --num-shards, --shard-index and --jobs."""
    group = parser.add_argument_group("more than one process or machine")
    group.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="local worker processes (default: cores)")
    group.add_argument("--num-shards", type=int, metavar="N", help="split the work into N shards (default: 1)")
    group.add_argument(
        "--shard-index",
        metavar="I|auto",
        help="shard of this run, 0..N-1; auto reads SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX or RANK",
    )


def shard_of(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Shard:
    """Return the shard for the arguments of `add_arguments`.

    `auto` takes the index from the first of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX (Kubernetes indexed job) and RANK
    (torchrun) that is set; N, unless given, is the size of the SLURM array or WORLD_SIZE. If N is given, the SLURM array
    must count from 0; then a single failed task can be submitted again.

    Raises InputError if no variable is set, if the index is outside 0..N-1, or if N or jobs is below 1.
    """
    count, index = arguments.num_shards, arguments.shard_index
    if arguments.jobs < 1 or (count is not None and count < 1):
        raise InputError(f"--jobs {arguments.jobs}, --num-shards {count}: both must be at least 1")
    if index is None:
        if count not in (None, 1):
            raise InputError(f"--num-shards {count} needs --shard-index 0..{count - 1}, or auto in a job array")
        return Shard()
    if index == "auto":
        found, size = _from_environment(environment, given=count is not None)
        count = size if count is None else count
    elif index.isdecimal():
        found = int(index)
    else:
        raise InputError(f"--shard-index {index!r} is neither a number from 0 on nor auto")
    if count is None:
        raise InputError(f"--shard-index {index} needs --num-shards: the number of shards is not known here")
    if not 0 <= found < count:
        raise InputError(f"shard index {found} is outside 0..{count - 1}: number an array from 0, e.g. --array=0-{count - 1}")
    return Shard(found, count)


def _from_environment(environment: Mapping[str, str], *, given: bool) -> tuple[int, int | None]:
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            index = int(environment["SLURM_ARRAY_TASK_ID"])
            if given:
                return index, None
            first, last, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "MAX", "COUNT"))
            if last - first + 1 != count:
                raise InputError(f"the SLURM array {first}..{last} has {count} tasks, not all in a row: give --num-shards")
            return index - first, count
        if "JOB_COMPLETION_INDEX" in environment:
            return int(environment["JOB_COMPLETION_INDEX"]), None
        if "RANK" in environment:
            return int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except KeyError as error:
        raise InputError(f"--shard-index auto: {error.args[0]} is not set here: give --num-shards") from error
    except ValueError as error:
        raise InputError(f"--shard-index auto: a variable of the scheduler is no number: {error}") from error
    raise InputError(
        "--shard-index auto: none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, RANK is set: "
        "give the index, or run it in a SLURM array, a Kubernetes indexed job or under torchrun"
    )
