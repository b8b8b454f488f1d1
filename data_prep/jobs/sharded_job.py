"""A job over many files: split it into shards, kill it at any moment, continue it, and merge the same bytes.

The plan of a job is its items (dicts with a unique `id`, usually a path) and its options. `shards.Shard` assigns the items
to shards. Under `OUT/shards/`:

    plan.json                    program, options, number of shards, digest of the items
    items.jsonl                  the items in order, one per line
    journal-00001-of-00004.jsonl finished rows, one line each with a checksum (until the shard is complete)
    part-00001-of-00004.jsonl    all rows of a shard and their digest; renamed into place when complete

A killed shard continues from its journal; an incomplete last line is dropped. `merge` reads the parts, checks that every
item has exactly one row, and returns the rows in the order of the items, for any number of shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.journal import Journal, Row, line_of
from jobs.shards import Shard
from sce_video.errors import InputError
from sce_video.runs.files import write_atomically


class Job:
    """The plan and the shards of one job in the folder `out`.

    program, options: must be equal in every run on this folder, e.g. {"quick": False}; JSON values.
    items: the work; each has a unique `id`.

    Raises InputError if `out` holds other files, or was begun with other items, options or number of shards.
    """

    def __init__(self, out: Path, program: str, items: Sequence[Row], options: Mapping[str, Any], num_shards: int) -> None:
        self.out, self.folder, self.items = out, out / "shards", list(items)
        self.plan: Row = {"program": program, "options": dict(options), "num_shards": num_shards, "items": len(self.items)}
        lines = b"".join(map(line_of, self.items))
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
        write_atomically(self.folder / "items.jsonl", lines, flush=True)
        write_atomically(self.folder / "plan.json", line_of(self.plan), flush=True)

    @classmethod
    def load(cls, out: Path, program: str) -> Job:
        """Return the job that `program` began in `out`; raise InputError if there is none."""
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
        if old.get("program") != self.plan["program"]:
            raise InputError(f"{self.out} was made by {old.get('program')}: give another --out")
        there, here = ({**plan, **plan["options"], "options": None} for plan in (old, self.plan))
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        told = ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)
        raise InputError(f"{self.out} was begun with other settings ({told}): give another --out or the same settings")

    def part(self, shard: Shard) -> Path:
        """Return the path of the finished rows of a shard."""
        return self.folder / f"part-{shard.name}.jsonl"

    def run(self, shard: Shard, work: Callable[[list[Row]], Iterable[Row]]) -> bool:
        """Process the rest of a shard; return False if it was complete.

        work: takes items and yields one row for each, in any order, with the `id` of the item. Every yielded row is stored
        at once. Raises InputError if another process works on this shard.
        """
        if self.part(shard).exists() and _read_part(self.part(shard)) is not None:
            return False
        journal = self.folder / f"journal-{shard.name}.jsonl"
        own = [item for item in self.items if shard.holds(item["id"])]
        with Journal(journal) as kept:
            done = {row["id"]: row for row in kept.rows}
            for row in work([item for item in own if item["id"] not in done]):
                kept.append(row)
                done[row["id"]] = row
            content = b"".join(line_of(done[item["id"]]) for item in own)
            last = {"rows": len(own), "sha256": hashlib.sha256(content).hexdigest()}
            write_atomically(self.part(shard), content + line_of(last), flush=True)
            journal.unlink()
        return True

    def merge(self) -> list[Row]:
        """Return the rows of all items in the order of the items.

        Raises InputError if a shard is missing or damaged, or an item has no row or several.
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


def _read_part(path: Path) -> list[Row] | None:
    """Return the rows of a part, or None if it is damaged."""
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
