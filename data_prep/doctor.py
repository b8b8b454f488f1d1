"""Look at every video of a manifest before training does, and leave out what is broken.

python data_prep/doctor.py train.csv --out health/train
python data_prep/doctor.py /data/videos --out health/videos --quick --jobs 8
python data_prep/doctor.py train.csv --out health/train --num-shards 64 --shard-index auto    # in a job array, then:
python data_prep/doctor.py merge health/train

Every file is decoded in a worker process that may hang or crash. Killed, it goes on where it was when started again.
In the folder of --out: health.csv (and health.parquet) with a row per file, clean.csv to train on, quarantine.csv with
path, status and reason, summary.html. The videos are only read. Statuses: see examine.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import health
import program
import sharded
from endings import printable
from examine import STATUSES, examine, stamped
from journal import Row
from parts import Job
from shards import add_arguments, shard_of
from sources import items_of
from workers import Failure, in_workers, with_progress

from sce_video.data import manifest

PROGRAM = "doctor.py"


def main(arguments: Sequence[str]) -> None:
    """Run the program with the arguments of its command line."""
    sharded.main(arguments, description=__doc__, name=PROGRAM, begin=check, finish=finish)


def check(arguments: Sequence[str]) -> None:
    """Examine one shard of a manifest; with a single shard write the results too."""
    parser = program.parser(__doc__)
    sharded.add_manifest_and_out(parser)
    parser.add_argument("--quick", action="store_true", help="count packets and decode frames at 3 places only")
    parser.add_argument(
        "--hang-seconds", type=float, default=30.0, help="no progress for so long is a hang (default: 30)"
    )
    parser.add_argument("--min-frames", type=program.positive, default=8, help="fewer make a video short (default: 8)")
    parser.add_argument(
        "--drop-short", action="store_true", help="put short videos into quarantine, not into clean.csv"
    )
    add_arguments(parser)
    given = parser.parse_args(arguments)
    shard = shard_of(given)
    items = items_of(manifest.read(given.manifest, given.root))
    plan = {name: getattr(given, name) for name in ("quick", "hang_seconds", "min_frames", "drop_short")}
    job = Job(given.out, PROGRAM, items, plan, shard.count)
    looked = partial(examine, quick=given.quick, min_frames=given.min_frames)
    sharded.do_shard(job, shard, lambda left: _examined(left, looked, given.jobs, given.hang_seconds), finish)


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
    """Join the shards, write the results and say what was found."""
    options = job.plan["options"]
    rows = job.merge()
    bad = health.write(job.out, job.items, rows, drop_short=options["drop_short"], quick=options["quick"])
    counts = Counter(row["status"] for row in rows)
    print(f"{len(rows)} files: " + ", ".join(f"{counts[name]} {name}" for name in STATUSES if counts[name]))
    for row in bad[:20]:
        print(f"  {row['status']}: {printable(row['path'])}: {row['reason']}")
    if len(bad) > 20:
        print(f"  and {len(bad) - 20} more")
    print(f"train on {printable(str(job.out / 'clean.csv'))}; the rest is in quarantine.csv, all of it in summary.html")


if __name__ == "__main__":
    program.run(main)
