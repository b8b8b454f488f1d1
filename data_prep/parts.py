"""Work on many files that may be split over machines, killed at any moment, and joined to the same bytes.

The items of a job (dicts with a unique `id`, usually a path) and its options are its plan. A shard is the items whose id
hashes to its number: a pure function of the id, so that neither order nor neighbours matter. Under `OUT/shards/`:

    plan.json                    program, options, number of shards, digest of the items
    items.jsonl                  the items in order, one per line
    journal-00001-of-00004.jsonl rows done so far, appended one by one, each line with its checksum (while working)
    part-00001-of-00004.jsonl    all rows of a shard and their digest; renamed into place when complete

A killed shard goes on from its journal, a line cut in half is dropped. `merge` reads the parts, insists that every item
has exactly one row, and returns the rows in the order of the items: the same whatever the number of shards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sce_video.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: nothing then keeps two runs of one shard apart
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """Number `index` (from 0) of `count`."""

    index: int = 0
    count: int = 1

    def holds(self, item_id: str) -> bool:
        """Whether the item belongs to this shard: its id's hash modulo the number of shards."""
        digest = hashlib.blake2b(os.fsencode(item_id), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index

    @property
    def name(self) -> str:
        """As it stands in the names of files: 00001-of-00004."""
        return f"{self.index:05d}-of-{self.count:05d}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --num-shards, --shard-index and --jobs."""
    group = parser.add_argument_group("more than one process or machine")
    group.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="local worker processes (default: cores)")
    group.add_argument("--num-shards", type=int, metavar="N", help="split the work into N shards (default: 1)")
    group.add_argument(
        "--shard-index",
        metavar="I|auto",
        help="which shard this run does, 0..N-1; auto reads SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX or RANK",
    )


def shard_of(arguments: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Shard:
    """Return the shard that the arguments of `add_arguments` ask for.

    `auto` takes the index from the first of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX (Kubernetes indexed job) and RANK
    (torchrun) that is set; N, unless given, is the size of the SLURM array or WORLD_SIZE. With N given the SLURM array
    must count from 0, so that a single failed task can be submitted again.

    Raises InputError: no such variable, an index outside 0..N-1, N or jobs below 1.
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
        raise InputError(
            f"shard index {found} is outside 0..{count - 1}: number an array from 0, e.g. --array=0-{count - 1}"
        )
    return Shard(found, count)


def _from_environment(environment: Mapping[str, str], *, given: bool) -> tuple[int, int | None]:
    try:
        if "SLURM_ARRAY_TASK_ID" in environment:
            index = int(environment["SLURM_ARRAY_TASK_ID"])
            if given:
                return index, None
            first, last, count = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "MAX", "COUNT"))
            if last - first + 1 != count:
                raise InputError(
                    f"the SLURM array {first}..{last} has {count} tasks, not all in a row: give --num-shards"
                )
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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there: under another name, flushed to the disk, renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _line(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"


class Job:
    """The plan and the shards of one job in the folder `out`.

    program and options: what must be the same in every run on this folder, e.g. {"quick": False}; plain values.
    items: what there is to do; each with an `id` of its own.

    Raises InputError when `out` holds something else, or was begun with other items, options or number of shards.
    """

    def __init__(
        self, out: Path, program: str, items: Sequence[Row], options: Mapping[str, Any], num_shards: int
    ) -> None:
        self.out, self.folder, self.items = out, out / "shards", list(items)
        self.plan: Row = {
            "program": program,
            "options": dict(options),
            "num_shards": num_shards,
            "items": len(self.items),
        }
        lines = b"".join(map(_line, self.items))
        self.plan["items_sha256"] = hashlib.sha256(lines).hexdigest()
        twice = _doubled([item["id"] for item in self.items])
        if twice:
            raise InputError(f"{len(twice)} items occur more than once, e.g. {twice[0]}")
        if (self.folder / "plan.json").exists():
            self._compare(json.loads((self.folder / "plan.json").read_bytes()))
            return
        if out.exists() and (not out.is_dir() or any(entry.name != "shards" for entry in out.iterdir())):
            raise InputError(f"{out} is there and was not made by {program}: give a new or empty folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "items.jsonl", lines)
        write_atomically(self.folder / "plan.json", _line(self.plan))

    @classmethod
    def load(cls, out: Path, program: str) -> Job:
        """Return the job that was begun in `out` by `program`; InputError if there is none."""
        try:
            plan = json.loads((out / "shards/plan.json").read_bytes())
            items = [json.loads(line) for line in (out / "shards/items.jsonl").read_bytes().splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"{out} is no folder of {program}: it has no readable shards/plan.json") from error
        if plan["program"] != program:
            raise InputError(f"{out} was made by {plan['program']}, not by {program}")
        return cls(out, program, items, plan["options"], plan["num_shards"])

    def _compare(self, old: Row) -> None:
        if old == self.plan:
            return
        there, here = ({**plan, **plan["options"], "options": None} for plan in (old, self.plan))
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        told = ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)
        raise InputError(f"{self.out} was begun with other settings ({told}): give another --out or the same settings")

    def part(self, shard: Shard) -> Path:
        """Where the finished rows of a shard are."""
        return self.folder / f"part-{shard.name}.jsonl"

    def run(self, shard: Shard, work: Callable[[list[Row]], Iterable[Row]]) -> bool:
        """Do what is left of a shard; return False if nothing was.

        work: takes items and yields one row for each, in any order, with the item's `id`. A row is kept as soon as it is
        yielded. Raises InputError if another process is at this shard.
        """
        if self.part(shard).exists() and _read_part(self.part(shard)) is not None:
            return False
        journal = self.folder / f"journal-{shard.name}.jsonl"
        own = [item for item in self.items if shard.holds(item["id"])]
        with _Journal(journal) as kept:
            done = {row["id"]: row for row in kept.rows}
            for row in work([item for item in own if item["id"] not in done]):
                kept.append(row)
                done[row["id"]] = row
            content = b"".join(_line(done[item["id"]]) for item in own)
            last = {"rows": len(own), "sha256": hashlib.sha256(content).hexdigest()}
            write_atomically(self.part(shard), content + _line(last))
            journal.unlink()
        return True

    def merge(self) -> list[Row]:
        """Return the rows of all items in the order of the items.

        Raises InputError: a shard is missing or damaged, an item has no row or more than one.
        """
        paths = sorted(self.folder.glob("part-*.jsonl"))
        rows: list[Row] = []
        for path in paths:
            part = _read_part(path)
            if part is None:
                raise InputError(f"{path} is damaged (its digest does not match): run this shard again")
            rows += part
        by_id = {row["id"]: row for row in rows}
        missing = [item["id"] for item in self.items if item["id"] not in by_id]
        if missing:
            shards = [Shard(index, self.plan["num_shards"]) for index in range(self.plan["num_shards"])]
            lost = [str(shard.index) for shard in shards if not self.part(shard).exists()]
            told = f"run shards {', '.join(lost)} of {len(shards)}" if lost else "run its shard again"
            raise InputError(f"{len(missing)} of {len(self.items)} items have no row, e.g. {missing[0]}: {told}")
        twice = _doubled([row["id"] for row in rows])
        if twice:
            raise InputError(f"{len(twice)} items have more than one row, e.g. {twice[0]}: remove what was copied in")
        return [by_id[item["id"]] for item in self.items]


class _Journal:
    """Rows on disk as they come. A line is `crc32 json`; what follows the last whole line is cut off on opening."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self.rows: list[Row] = []

    def __enter__(self) -> _Journal:
        try:
            if fcntl is not None:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise InputError(f"{self.path}: another process is at this shard: let it finish or stop it") from error
        except OSError:
            pass  # a file system without locks
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                checksum, _, text = line.partition(b" ")
                if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
                    break
                self.rows.append(json.loads(text))
                end += len(line)
        os.ftruncate(self._handle, end)
        return self

    def append(self, row: Row) -> None:
        text = _line(row)
        line = b"%08x " % zlib.crc32(text) + text
        while line:  # a full disk takes a part of it first and fails then
            line = line[os.write(self._handle, line) :]

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)


def _read_part(path: Path) -> list[Row] | None:
    """Return the rows of a part; None if it is damaged."""
    content, _, last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
    content = content + b"\n" if content else b""
    try:
        told = json.loads(last)
    except ValueError:
        return None
    if not isinstance(told, dict) or told.get("sha256") != hashlib.sha256(content).hexdigest():
        return None
    return [json.loads(line) for line in content.splitlines()]


def _doubled(ids: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [item for item in ids if item in seen or seen.add(item)]  # type: ignore[func-returns-value]
