"""UCF101: write the three official splits as lists of videos that exist.

python data_prep/ucf101.py --lists ucfTrainTestlist --videos UCF-101 --out lists/ucf101
python data_prep/ucf101.py --lists ucfTrainTestlist --videos UCF-101 --out lists/ucf101 --probe 200
python tools/finetune.py recipe=ucf101 checkpoint=runs/k400 'splits=[1,2,3]' out=runs/ucf101 \\
    train=lists/ucf101/train%.csv test=lists/ucf101/test%.csv

Reads classInd.txt (`1 ApplyEyeMakeup`), trainlist01.txt (`Class/v_Class_g01_c01.avi 1`), testlist01.txt (no number) ...
Writes train1.csv test1.csv ... test3.csv (path and class name), summary.json and, if videos are missing, missing.txt.

The class is the folder's name in the list: class `HandstandPushups` has files `v_HandStandPushups_*`. Videos are found in
class folders or all in one, and with any ending (transcoded copies).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from annotations.entries import Entry, inside, lines_of
from annotations.official_splits import Split, add_splits, write_splits
from command_line import add_videos_and_out, parser, run

from sce_video.errors import InputError

PUBLISHED = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}


def read_classes(path: str | Path) -> list[str]:
    """Return the class names of classInd.txt; class number i of the lists is item i - 1."""
    classes: list[str] = []
    for where, line in lines_of(path):
        parts = line.split()
        if len(parts) != 2 or not parts[0].isdecimal():
            raise InputError(f"{where}: {line!r} is not `number class`, as in classInd.txt of UCF101")
        if int(parts[0]) != len(classes) + 1:
            raise InputError(f"{where}: class number {parts[0]} where {len(classes) + 1} must follow")
        if parts[1] in classes:
            raise InputError(f"{where}: class {parts[1]!r} has number {classes.index(parts[1]) + 1} already")
        classes.append(parts[1])
    if not classes:
        raise InputError(f"{str(path)!r} names no class")
    return classes


def read_list(path: str | Path, classes: Sequence[str], root: str | Path) -> list[Entry]:
    """Return the rows of a train or test list; classes by name.

    root: the videos' folder, which no name may leave. Raises InputError with file:line: a row of another form, an unknown
    class, a number (from 1) that is not that of the row's folder.
    """
    entries = []
    for where, line in lines_of(path):
        form = re.fullmatch(r"(.+\.\w+)(?:\s+(\S+))?", line)
        if form is None:
            raise InputError(f"{where}: {line!r} is not `Class/v_Class_g01_c01.avi` with or without the class's number")
        name, number = inside(form[1], root, where), form[2]
        folder = name.split("/")[0]
        if folder not in classes or "/" not in name:
            raise InputError(f"{where}: {form[1]!r} does not begin with the folder of one of {len(classes)} classes")
        if number is not None:
            if not number.isdecimal() or not 1 <= int(number) <= len(classes):
                raise InputError(f"{where}: class number {number} is not in 1..{len(classes)} (UCF101 counts from 1)")
            if classes[int(number) - 1] != folder:
                raise InputError(f"{where}: number {number} is class {classes[int(number) - 1]!r}, the folder {folder!r}")
        entries.append(Entry(name, folder, where))
    if not entries:
        raise InputError(f"{str(path)!r} holds no row")
    return entries


def main(arguments: Sequence[str]) -> None:
    """Run the program."""
    options = parser(__doc__)
    options.add_argument("--lists", required=True, metavar="FOLDER", help="the unpacked ucfTrainTestlist")
    add_videos_and_out(options)
    add_splits(options)
    given = options.parse_args(arguments)
    lists = Path(given.lists)
    classes = read_classes(lists / "classInd.txt")
    splits = {
        number: Split(*(read_list(lists / f"{part}list0{number}.txt", classes, given.videos) for part in ("train", "test")))
        for number in sorted(set(given.splits))
    }
    write_splits(splits, PUBLISHED, given, "ucf101")


if __name__ == "__main__":
    run(main)
