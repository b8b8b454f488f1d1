"""Write small copies of videos, which training reads several times faster: same frames, same times, no sound.

python data_prep/shrink.py train.csv --out /data/small --estimate          # disk space and time, from a few files
python data_prep/shrink.py train.csv --out /data/small --short-side 128 --jobs 8
python data_prep/shrink.py train.csv --out /data/pictures --form jpeg-zip
python data_prep/shrink.py train.csv --out /data/small --num-shards 64 --shard-index auto    # in a job array, then:
python data_prep/shrink.py merge /data/small

Use a short side of 256 (the default) for clips of 224 pixels and 128 for 112: random crops need that margin. The --out
folder gets videos/, manifest.csv (same labels and segments), shrunk.csv with bytes and differences, and failed.csv. Every copy is
compared with its source before it is renamed; broken files are listed in failed.csv. After a kill, the same command
continues the work. The sources are only read. media/transcode.py describes the copies. --form writes JPEG pictures in
folders or zip files instead of H.264; training reads them like videos.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import command_line
from jobs import shard_command
from jobs.journal import Row
from jobs.manifest_items import items_of, targets_of, videos_of
from jobs.sharded_job import Job
from jobs.shards import add_arguments, shard_of
from jobs.workers import Alive, Failure, in_workers, with_progress
from media import transcode
from media.copy_form import ENGINES, KINDS, Form
from media.examine import strike
from media.ffmpeg_copies import check_program
from output_files import csv_bytes, csv_text

from sce_video.data import manifest
from sce_video.errors import InputError, log, printable
from sce_video.runs.files import write_atomically

PROGRAM = "shrink.py"
TRIALS = 8  # files that an estimate is made from
COLUMNS = (
    *("path", "output", "status", "reason", "width", "height", "frames", "seconds", "time_error", "difference"),
    *("bytes_before", "bytes_after"),
)


def main(arguments: Sequence[str]) -> None:
    """Run the program with the arguments of its command line."""
    shard_command.main(arguments, description=__doc__, name=PROGRAM, begin=make, finish=finish)


def make(arguments: Sequence[str]) -> None:
    """Shrink one shard of a manifest; write the lists too if it is the only shard."""
    parser = command_line.parser(__doc__)
    shard_command.add_manifest_and_out(parser)
    parser.add_argument(
        "--short-side", type=command_line.positive, default=256, help="pixels (default: 256); videos are never enlarged"
    )
    parser.add_argument(
        "--form", choices=KINDS, default="video", help="of a copy: H.264 in MP4, or JPEG pictures (default: video)"
    )
    parser.add_argument(
        "--crf",
        type=int,
        choices=range(52),
        default=21,
        metavar="0..51",
        help="constant quality of x264, lower is better (default: 21)",
    )
    parser.add_argument(
        "--jpeg-quality",
        type=int,
        choices=range(1, 101),
        default=90,
        metavar="1..100",
        help="quality of JPEG pictures (default: 90)",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, default="pyav", help="writer of H.264: PyAV or the ffmpeg program (default: pyav)"
    )
    parser.add_argument("--estimate", action="store_true", help="copy a few files and print the disk space and time of all")
    parser.add_argument(
        "--hang-seconds", type=float, default=120.0, help="seconds without progress that count as a hang (default: 120)"
    )
    add_arguments(parser)
    given = parser.parse_args(arguments)
    shard = shard_of(given)
    form = _form(given)
    items = items_of(manifest.read(given.manifest, given.root))
    is_folder = os.path.isdir(given.manifest)
    base = os.path.abspath(given.manifest if is_folder else given.root or os.path.dirname(given.manifest))
    if is_folder and os.path.commonpath([base, os.path.abspath(given.out)]) == base:
        raise InputError(f"--out {given.out} lies in {base}, whose videos are read: choose a folder outside")
    for item, target in zip(items, targets_of(items, base, form.ending), strict=True):
        item["output"] = target
    if given.estimate:
        print(estimate([item for item in items if shard.holds(item["id"])], form, given)[0])
        return
    job = Job(given.out, PROGRAM, items, form._asdict(), shard.count)
    shard_command.do_shard(job, shard, lambda left: shrunk(left, form, given), finish)


def _form(given: Any) -> Form:
    if given.engine == "ffmpeg":
        if given.form != "video":
            raise InputError(f"--engine ffmpeg writes videos; for --form {given.form} leave --engine out")
        log.info(f"ffmpeg {check_program()}")
    return Form(given.short_side, given.form, given.crf, given.jpeg_quality, given.engine)


def shrunk(left: Sequence[Row], form: Form, given: Any) -> Iterator[Row]:
    """Shrink items and yield a row for each.

    Raises InputError before the first copy if the estimate exceeds the free disk space, and OSError if the disk fills up.
    """
    if len(left) > 3 * TRIALS:
        sentence, needed = estimate(left, form, given)
        log.info(sentence)
        free = shutil.disk_usage(given.out).free
        if needed > free:
            raise InputError(f"about {needed / 1e9:.2f} GB are needed in {given.out}, {free / 1e9:.2f} GB are free there")
    task = partial(shrink_item, folder=str(given.out), form=form)
    answers = in_workers(task, left, jobs=given.jobs, silence_seconds=given.hang_seconds)
    for item, row in with_progress(answers, len(left)):
        if isinstance(row, Failure):
            transcode.discard(_working(given.out, item, form))
            row = {"id": item["id"], "status": "failed", "reason": f"{row.kind}: {row.reason}"}
        yield row


def _working(folder: str | Path, item: Row, form: Form) -> Path:
    digest = hashlib.blake2b(os.fsencode(item["id"]), digest_size=10).hexdigest()
    return Path(folder, "shards", f"unfinished-{digest}{form.ending}")


def shrink_item(item: Row, alive: Alive, *, folder: str, form: Form) -> Row:
    """Shrink one item into `folder`; workers call it."""
    strike(item["id"])
    target = Path(folder, "videos", item["output"])
    return {"id": item["id"], **transcode.shrink(item["id"], target, _working(folder, item, form), form, alive)}


def timed(item: Row, alive: Alive, *, form: Form) -> Row:
    """Shrink one item into a temporary folder and add `processor_seconds` to its row; workers call it."""
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        working, copy = (Path(folder, name + form.ending) for name in ("working", "copy"))
        row = transcode.shrink(item["id"], copy, working, form, alive)
    return {**row, "processor_seconds": time.process_time() - begun}


def estimate(items: Sequence[Row], form: Form, given: Any) -> tuple[str, int]:
    """Return a sentence about disk space and time, and the needed bytes, from some items at equal distances.

    Assumes that bytes and time are proportional to the bytes of the sources; expect an error of 30 %.
    """
    sizes = [os.path.getsize(item["id"]) if os.path.isfile(item["id"]) else 0 for item in items]
    some = items[:: max(len(items) // TRIALS, 1)][:TRIALS]
    answers = in_workers(partial(timed, form=form), some, jobs=given.jobs, silence_seconds=given.hang_seconds)
    rows = [row for _, row in answers if not isinstance(row, Failure) and row["status"] == "ok"]
    if not rows:
        raise InputError(f"none of the {len(some)} files tried can be shrunk: look at them with data_prep/doctor.py")
    before = sum(row["bytes_before"] for row in rows)
    needed = round(sum(sizes) * sum(row["bytes_after"] for row in rows) / before)
    seconds = sum(sizes) * sum(row["processor_seconds"] for row in rows) / before
    hours, minutes = seconds / 3600, seconds / given.jobs / 60
    duration = f"{minutes:.1f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"
    sentence = (
        f"{len(items)} files, {sum(sizes) / 1e9:.2f} GB: copies will take about {needed / 1e9:.2f} GB and "
        f"{hours:.2f} processor hours, {duration} with {given.jobs} jobs "
        f"(from {len(rows)} files tried)"
    )
    return sentence, needed


def finish(job: Job) -> None:
    """Merge the shards, write the lists and print a summary."""
    rows = job.merge()
    pairs = list(zip(job.items, rows, strict=True))
    made = [(item, row) for item, row in pairs if row["status"] == "ok"]
    lost = [item["output"] for item, _ in made if not (job.out / "videos" / item["output"]).exists()]
    if lost:
        raise InputError(f"{len(lost)} copies are no longer in {job.out}/videos, e.g. {lost[0]}: begin in a new folder")
    table = [{**row, "path": item["id"], "output": item["output"] if row["status"] == "ok" else None} for item, row in pairs]
    failed = [row for row in table if row["status"] != "ok"]
    # A copy keeps every frame at its time, so segments stay what they were.
    videos = [video for item, _ in made for video in videos_of(item, os.path.abspath(job.out / "videos" / item["output"]))]
    write_atomically(job.out / "shrunk.csv", csv_bytes(COLUMNS, table), flush=True)
    write_atomically(job.out / "failed.csv", csv_bytes(("path", "status", "reason"), failed), flush=True)
    write_atomically(job.out / "manifest.csv", csv_text(videos, job.out).encode("utf-8", "surrogateescape"), flush=True)
    before, after = (sum(row[name] for _, row in made) for name in ("bytes_before", "bytes_after"))
    print(f"{len(made)} of {len(rows)} files shrunk: {before / 1e6:.1f} MB became {after / 1e6:.1f} MB")
    for row in failed[:20]:
        print(f"  failed: {printable(row['path'])}: {row['reason']}")
    if len(failed) > 20:
        print(f"  and {len(failed) - 20} more, see failed.csv")
    print(f"train on {printable(str(job.out / 'manifest.csv'))}")


if __name__ == "__main__":
    command_line.run(main)
