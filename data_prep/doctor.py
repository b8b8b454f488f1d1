"""Examine every video of a manifest before training, and leave out the broken ones.

python data_prep/doctor.py train.csv --out health/train
python data_prep/doctor.py /data/videos --out health/videos --quick --jobs 8
python data_prep/doctor.py recordings.csv --out health/recordings --shots
python data_prep/doctor.py train.csv --out health/train --num-shards 64 --shard-index auto    # in a job array, then:
python data_prep/doctor.py merge health/train

Every file is decoded in a worker process, which may hang or crash. After a kill, the same command continues the work.
The --out folder gets health.csv (and health.parquet) with a row per file, clean.csv to train on, quarantine.csv with
path, status and reason, and summary.html; with --shots also shots.csv, a list of the segments between cuts (media/shots.py).
The videos are only read. media/examine.py lists the statuses.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import command_line
from jobs import shard_command
from jobs.journal import Row
from jobs.manifest_items import items_of
from jobs.sharded_job import Job
from jobs.shards import add_arguments, shard_of
from jobs.workers import Failure, in_workers, with_progress
from media import health_report
from media.examine import STATUSES, examine, stamped
from output_files import csv_text

from sce_video.data import manifest
from sce_video.errors import InputError, log, printable
from sce_video.runs.files import write_atomically

PROGRAM = "doctor.py"
TINY = 64  # pixels of the shorter side


def main(arguments: Sequence[str]) -> None:
    """Run the program with the arguments of its command line."""
    shard_command.main(arguments, description=__doc__, name=PROGRAM, begin=check, finish=finish)


def check(arguments: Sequence[str]) -> None:
    """Examine one shard of a manifest; write the results too if it is the only shard."""
    parser = command_line.parser(__doc__)
    shard_command.add_manifest_and_out(parser)
    parser.add_argument("--quick", action="store_true", help="count packets and decode a few frames at 3 positions only")
    parser.add_argument(
        "--hang-seconds", type=float, default=30.0, help="seconds without progress that count as a hang (default: 30)"
    )
    parser.add_argument(
        "--min-frames", type=command_line.positive, default=8, help="a video with fewer frames is short (default: 8)"
    )
    parser.add_argument("--drop-short", action="store_true", help="put short videos into quarantine, not into clean.csv")
    parser.add_argument(
        "--shots", action="store_true", help="find the cuts too, and write shots.csv, a row for each shot of --min-frames or more"
    )
    add_arguments(parser)
    given = parser.parse_args(arguments)
    shard = shard_of(given)
    items = items_of(manifest.read(given.manifest, given.root))
    if given.shots and (given.quick or any("segments" in item for item in items)):
        raise InputError("--shots decodes every frame of whole videos: leave out --quick, and give a list without segments")
    passed_over(given.manifest)
    plan = {name: getattr(given, name) for name in ("quick", "hang_seconds", "min_frames", "drop_short")}
    plan |= {"shots": True} if given.shots else {}  # jobs begun before have no such setting
    job = Job(given.out, PROGRAM, items, plan, shard.count)
    looked = partial(examine, quick=given.quick, min_frames=given.min_frames, shots=given.shots)
    shard_command.do_shard(job, shard, lambda left: _examined(left, looked, given.jobs, given.hang_seconds), finish)


def passed_over(folder: str) -> None:
    """Say which files below a folder are no videos by their ending; nothing for a list."""
    others: Counter[str] = Counter()
    for _, folders, files in os.walk(folder):  # nothing for a list
        folders[:] = [name for name in folders if not manifest.is_video_name(name)]  # pictures of a video
        others.update(Path(name).suffix.lower() or "no ending" for name in files if not manifest.is_video_name(name))
    if others:
        named = ", ".join(f"{count} {printable(ending)}" for ending, count in others.most_common(8))
        log.info(f"passed over by ending: {named}")


def _examined(left: Sequence[Row], looked: Any, jobs: int, hang_seconds: float) -> Iterator[Row]:
    """Yield a row for each item."""
    paths = [item["id"] for item in left]
    answers = in_workers(looked, paths, jobs=jobs, silence_seconds=hang_seconds)
    for path, row in with_progress(answers, len(paths)):
        if isinstance(row, Failure):
            status = "hang" if row.kind == "hang" else "unreadable"
            yield {"id": path, **stamped(path), "status": status, "reason": row.reason}
        else:
            yield row


def finish(job: Job) -> None:
    """Merge the shards, write the results and print a summary."""
    options = job.plan["options"]
    rows = job.merge()
    bad = health_report.write(job.out, job.items, rows, drop_short=options["drop_short"], quick=options["quick"])
    if options.get("shots"):
        write_shots(job, rows, options)
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} files: " + ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name]))
    for row in bad[:20]:
        print(f"  {row['status']}: {printable(row['path'])}: {row['reason']}")
    if len(bad) > 20:
        print(f"  and {len(bad) - 20} more")
    kept = [row for row in rows if row not in bad and row["status"] in ("ok", "short")]
    name_some("short", [row for row in kept if row["status"] == "short"])
    name_some(f"tiny, below {TINY} pixels", [row for row in kept if min(row["width"], row["height"]) < TINY])
    print(f"train on {printable(str(job.out / 'clean.csv'))}; the rest is in quarantine.csv, all of it in summary.html")


def write_shots(job: Job, rows: Sequence[Row], options: Row) -> None:
    """Write shots.csv: frames [start, end) of each shot of a sound video; folders of pictures are one row."""
    good = ("ok",) if options["drop_short"] else ("ok", "short")
    shots, short = list[manifest.Video](), 0
    for item, row in zip(job.items, rows, strict=True):
        edges = [0, *row.get("cuts", ()), row.get("frames", 0)]
        for label in item["labels"] if row["status"] in good else ():
            if len(edges) == 2:
                shots.append(manifest.Video(item["id"], label))
                continue
            for start, end in zip(edges[:-1], edges[1:], strict=True):
                short += end - start < options["min_frames"]
                if end - start >= options["min_frames"]:
                    shots.append(manifest.Video(item["id"], label, start=start, end=end, in_frames=True))
    write_atomically(job.out / "shots.csv", csv_text(shots, job.out).encode("utf-8", "surrogateescape"), flush=True)
    left_out = f" ({short} shorter than {options['min_frames']} frames left out)" if short else ""
    print(f"{len(shots)} shots of {len(rows)} files{left_out}: train on {printable(str(job.out / 'shots.csv'))}")


def name_some(what: str, rows: Sequence[Row]) -> None:
    """Print the names of the first of these videos, which are kept."""
    if rows:
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        print(f"{what}, kept: {', '.join(printable(row['id']) for row in rows[:5])}{more}")


if __name__ == "__main__":
    command_line.run(main)
