"""Kinetics-400, -600, -700: turn the published lists and the downloaded files into lists of videos that exist.

python data_prep/kinetics.py --lists train.csv validate.csv --videos /data/k400 --out lists/k400
python data_prep/kinetics.py --lists train.csv val.csv test.csv --videos /data/k400/train /data/k400/val --out lists/k400
python data_prep/kinetics.py --lists train.csv val.csv --only train_ytid_list.txt val_ytid_list.txt --videos k400 --out lists/k200
python data_prep/kinetics.py --lists k600_train.csv --without k400_val.csv k400_test.csv --videos k600 --out lists/k600

Reads the published tables (label,youtube_id,time_start,time_end,split; `is_cc` and others are ignored; test lists may have
no label) and files named `ID_000027_000037.mp4` or `ID.mp4`, in one folder or in any folders, with any video's ending.
Writes train.csv, val.csv, test.csv (path and class; path alone where there is no class), missing.csv in the published
columns, for the next download, their names in missing.txt, and summary.json.

Train and validation stay apart: a clip in two lists and one file for two clips are errors; a video with different seconds
in two lists and a file in the folder of another split are reported. Kinetics-600 and -700 train on videos that
Kinetics-400 tests on: name those lists after --without. --only keeps the videos of lists of ids (Mini-Kinetics-200).
--untrimmed takes each clip as a segment (start,end) of its whole video `ID.mp4`, which is never cut.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from annotations.entries import lines_of
from annotations.kinetics_files import ClipFiles
from annotations.kinetics_tables import YOUTUBE_ID, Clip, read_list, refuse_shared, take_once
from annotations.summary_report import Report
from command_line import add_probe, parser, run
from output_files import quoted

from sce_video.data.manifest import Video
from sce_video.errors import InputError

ID_LETTERS = 11  # of a YouTube id: other names hold the seconds too


def missing_texts(clips: Sequence[Clip]) -> dict[str, str]:
    """Return missing.csv, in the columns of the published lists, and missing.txt, a name `ID_start_end` a line."""
    rows = [f"{quoted(c.label or '')},{c.youtube_id},{c.start},{c.end},{c.split}" for c in clips]
    names = [f"{c.youtube_id}_{c.start:06d}_{c.end:06d}" for c in clips]
    header = "label,youtube_id,time_start,time_end,split"
    return {"missing.csv": "\n".join([header, *rows, ""]), "missing.txt": "\n".join([*names, ""])} if clips else {}


def leave_out(clips: Sequence[Clip], lists: Sequence[str]) -> tuple[list[Clip], list[str]]:
    """Return the clips of videos that the other lists do not name, whatever their seconds, and a sentence about it.

    Raises InputError if none is left.
    """
    if not lists:
        return list(clips), []
    others = {clip.youtube_id for path in lists for clip in read_list(path)}
    kept = [clip for clip in clips if clip.youtube_id not in others]
    if not kept:
        raise InputError(f"all {len(clips)} listed clips are of videos in {', '.join(lists)}: --without leaves none")
    return kept, [f"{len(clips) - len(kept)} clips were left out: their videos are in {', '.join(lists)} (--without)"]


def keep_only(clips: Sequence[Clip], lists: Sequence[str]) -> tuple[list[Clip], list[str]]:
    """Return the clips of videos whose ids the files name, one a line, and a sentence about it.

    Raises InputError with file:line for a line that is no id, or if no clip is left.
    """
    if not lists:
        return list(clips), []
    ids = set()
    for where, line in (row for path in lists for row in lines_of(path)):
        if not re.fullmatch(YOUTUBE_ID, line):
            raise InputError(f"{where}: {line!r} is no YouTube id; --only takes files with one id a line")
        ids.add(line)
    kept = [clip for clip in clips if clip.youtube_id in ids]
    if not kept:
        raise InputError(f"none of the {len(clips)} listed clips has one of the {len(ids)} ids of {', '.join(lists)}")
    unknown = len(ids - {clip.youtube_id for clip in kept})
    return kept, [f"{len(kept)} of {len(clips)} listed clips were kept (--only); {unknown} of {len(ids)} ids are in no list"]


def both_lists(clips: Sequence[Clip]) -> Iterator[str]:
    """Yield a sentence if two splits take different seconds of one video."""
    first: dict[str, Clip] = {}
    pairs = []
    for clip in clips:
        other = first.setdefault(clip.youtube_id, clip)
        if other.split != clip.split:
            pairs.append((other, clip))
    if pairs:
        one, two = pairs[0]
        yield (
            f"{len(pairs)} videos are in two splits with different seconds, e.g. {one.youtube_id} "
            f"({one.where}: {one.split}, {two.where}: {two.split})"
        )


def main(arguments: Sequence[str]) -> None:
    """Run the program."""
    options = parser(__doc__)
    options.add_argument("--lists", required=True, nargs="+", metavar="CSV", help="published lists, of any splits")
    options.add_argument("--videos", required=True, nargs="+", metavar="FOLDER", help="folders of videos; only read")
    options.add_argument("--out", required=True, metavar="FOLDER", help="where the lists go; nothing is overwritten")
    options.add_argument(
        "--without", nargs="+", default=[], metavar="CSV", help="published lists whose videos are left out everywhere"
    )
    options.add_argument(
        "--only", nargs="+", default=[], metavar="FILE", help="files of YouTube ids, one a line: all other videos are left out"
    )
    options.add_argument(
        "--untrimmed", action="store_true", help="files named ID.mp4 are whole videos: write each clip as a segment of its file"
    )
    add_probe(options)
    given = options.parse_args(arguments)
    clips, notes = take_once(clip for path in given.lists for clip in read_list(path))
    refuse_shared(clips)
    notes += both_lists(clips)
    clips, kept = keep_only(clips, given.only)
    clips, left_out = leave_out(clips, given.without)
    files = ClipFiles(given.videos, untrimmed=given.untrimmed)
    report = Report("kinetics")
    report.notes += [*notes, *kept, *left_out]
    present: dict[str, list[Video]] = {}
    missing = []
    for clip in clips:
        path = files.find(clip)
        rows = present.setdefault(clip.split, [])
        if path is None:
            missing.append(clip)
        elif given.untrimmed and len(os.path.splitext(os.path.basename(path))[0]) == ID_LETTERS:
            rows.append(Video(path, clip.label, start=clip.start, end=clip.end))
        else:
            rows.append(Video(path, clip.label))
    if len(missing) == len(clips):
        raise InputError(files.nothing(clips))
    for split, rows in present.items():
        report.add(split, rows, sum(clip.split == split for clip in clips))
    if {"train", "val"} <= present.keys():
        report.compare("train", "val")
    report.notes += files.notes()
    report.write(given.out, probe=given.probe, extra=missing_texts(missing))


if __name__ == "__main__":
    run(main)
