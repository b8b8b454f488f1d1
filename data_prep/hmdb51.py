"""HMDB51: write the three official splits as lists of videos that exist.

python data_prep/hmdb51.py --lists testTrainMulti_7030_splits --videos hmdb51_org --out lists/hmdb51
python data_prep/hmdb51.py --lists testTrainMulti_7030_splits --videos hmdb51_org --out lists/hmdb51 --probe 200
python tools/finetune.py recipe=hmdb51 checkpoint=runs/k400 'splits=[1,2,3]' out=runs/hmdb51 \\
    train=lists/hmdb51/train%.csv test=lists/hmdb51/test%.csv

Reads the 153 files `<class>_test_split<k>.txt`; each line is `video.avi flag`: 1 train, 2 test, 0 not used in this split.
Writes train1.csv test1.csv ... test3.csv (path and class name), summary.json and, if videos are missing, missing.txt.

The archive holds one archive per class: unpack them so that videos lie in class folders, or all in one folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from annotations.entries import Entry, inside, lines_of
from annotations.official_splits import Split, add_splits, write_splits
from command_line import add_videos_and_out, parser, run

from sce_video.errors import InputError

PUBLISHED = {number: (3570, 1530) for number in (1, 2, 3)}
CLASSES = 51


def find_lists(folder: str | Path, splits: Iterable[int]) -> dict[int, dict[str, Path]]:
    """Return the split files by split and class; raise InputError unless every split has the same 51 classes."""
    wanted = list(splits)
    lists: dict[int, dict[str, Path]] = {number: {} for number in wanted}
    if not Path(folder).is_dir():
        raise InputError(f"--lists {str(folder)!r} is not a folder: give the one with `<class>_test_split1.txt` ...")
    for path in sorted(Path(folder).iterdir()):
        form = re.fullmatch(r"(.+)_test_split(\d)\.txt", path.name)
        if form and int(form[2]) in lists:
            lists[int(form[2])][form[1]] = path
    classes = sorted({name for files in lists.values() for name in files})
    for number, files in lists.items():
        for name in classes:
            if name not in files:
                raise InputError(f"{str(Path(folder) / f'{name}_test_split{number}.txt')!r} is missing: unpack all lists")
    if len(classes) != CLASSES:
        raise InputError(f"{str(folder)!r} has lists of {len(classes)} classes, HMDB51 has {CLASSES}: unpack all 153 files")
    return lists


def read_list(path: str | Path, label: str, root: str | Path) -> Split:
    """Return the rows of one class's file; a row flagged 0 is in neither part.

    root: the videos' folder. Raises InputError with file:line: a row of another form or with another flag.
    """
    parts: dict[str, list[Entry]] = {"0": [], "1": [], "2": []}
    for where, line in lines_of(path):
        form = re.fullmatch(r"(.+\.\w+)\s+(\S+)", line)
        if form is None:
            raise InputError(f"{where}: {line!r} is not `video.avi flag`")
        if form[2] not in parts:
            raise InputError(f"{where}: flag {form[2]!r} is not 0 (unused), 1 (train) or 2 (test)")
        if "/" in form[1]:
            raise InputError(f"{where}: {form[1]!r} names a folder; HMDB51's lists name files of one class")
        parts[form[2]].append(Entry(inside(f"{label}/{form[1]}", root, where), label, where))
    if not parts["1"] or not parts["2"]:
        raise InputError(f"{str(path)!r} has {len(parts['1'])} train and {len(parts['2'])} test rows: both must be there")
    return Split(parts["1"], parts["2"])


def main(arguments: Sequence[str]) -> None:
    """Run the program."""
    options = parser(__doc__)
    options.add_argument("--lists", required=True, metavar="FOLDER", help="the unpacked testTrainMulti_7030_splits")
    add_videos_and_out(options)
    add_splits(options)
    given = options.parse_args(arguments)
    splits = {}
    for number, files in find_lists(given.lists, sorted(set(given.splits))).items():
        parts = [read_list(path, label, given.videos) for label, path in files.items()]
        splits[number] = Split([row for part in parts for row in part.train], [row for part in parts for row in part.test])
    write_splits(splits, PUBLISHED, given, "hmdb51")


if __name__ == "__main__":
    run(main)
