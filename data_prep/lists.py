"""Turn lists of other programs (SlowFast, VideoMAE, mmaction2, ...) into lists of videos that exist.

python data_prep/lists.py --lists train.txt val.txt --videos /data/k400 --out lists/k400
python data_prep/lists.py --lists train.csv val.csv --videos /data/k400 --out lists/k400 --classes classInd.txt
python data_prep/lists.py --lists pretrain.csv --videos / --out lists/pretrain --allow-missing

| row                  | written for                                            | becomes                                    |
|----------------------|--------------------------------------------------------|--------------------------------------------|
| `path label`         | SlowFast, VideoMAE (finetuning), mmaction2             | path,label                                 |
| `path,label`         | SlowFast with a separator, VideoMAE; with our header too | path,label, and segments                 |
| `path 0 -1`          | VideoMAE (pretraining): start, all frames              | path                                       |
| `path`               | any                                                    | path                                       |
| `folder 250 3`       | mmaction2: frames as pictures, their number, the class | folder,label; all pictures are read        |
| `folder 1 250 3`     | VideoMAE: a part of the pictures                       | refused: list whole folders                |
| `path 3 17`          | mmaction2: several classes a video                     | refused: one class a video here            |

Between the columns: blanks, tabs, or a comma. A path may hold blanks, with or without quotes. Writes train.csv for train.txt
and so on, summary.json and, with --allow-missing, missing.txt. --classes turns numbers into names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from annotations.entries import SPACE, Entry, inside, lines_of, unique
from annotations.file_search import refuse_missing
from annotations.summary_report import Report
from command_line import add_videos_and_out, parser, run

from sce_video.data import manifest
from sce_video.data.manifest import VIDEO_SUFFIXES, Video
from sce_video.data.readers.frame_folder import DESCRIPTION
from sce_video.data.readers.media import FRAMES_FOLDER, FRAMES_ZIP
from sce_video.errors import InputError

SUFFIXES = sorted([*VIDEO_SUFFIXES, FRAMES_FOLDER, FRAMES_ZIP], key=len, reverse=True)
ENDINGS = "|".join(re.escape(suffix) for suffix in SUFFIXES)
PICTURES = "folder frames label"
ROW = re.compile(rf"(?P<path>.*(?:{ENDINGS})[\"']?)(?:(?P<separator>[ \t]*,[ \t]*|[ \t]+)(?P<rest>.*))?", re.IGNORECASE)


def read_list(path: str | Path, root: str | Path) -> list[Entry]:
    """Read a list in any of the forms above; its rows must be of one form.

    root: where relative paths start, and which no path may leave. Raises InputError with file:line.
    """
    if _has_header(path):
        videos = manifest.read(path, root)
        return [
            Entry(inside(video.path, root, where := f"{path}:{video.line}"), video.label, where, video.segment)
            for video in videos
        ]
    entries: list[Entry] = []
    forms: dict[str, str] = {}
    for where, line in lines_of(path):
        if line.startswith("#"):
            continue
        name, label, form = parse(line, where)
        forms.setdefault(form, where)
        if len(forms) > 1:
            (first, at), (second, here) = forms.items()
            raise InputError(f"{here}: a row `{second}` in a list of rows `{first}` ({at}): write them as two lists")
        entries.append(Entry(inside(name, root, where), label, where))
    if not entries:
        raise InputError(f"{str(path)!r} holds no row")
    return entries


def parse(line: str, where: str) -> tuple[str, str | None, str]:
    """Return path, class and form (`path`, `path label`, `path 0 -1`, PICTURES) of one row; InputError with `where`."""
    row = ROW.fullmatch(line)
    if row is None:
        numbers = line.split()[1:]
        if numbers and all(re.fullmatch(r"-?\d+", number) for number in numbers):
            if len(numbers) == 2 and "," not in line:
                return line.split()[0], numbers[1], PICTURES
            raise InputError(
                f"{where}: {line!r} has no video's ending and {len(numbers)} numbers: of folders of pictures only "
                f"mmaction2's rows `{PICTURES}` are read"
            )
        raise InputError(f"{where}: {line!r} is not `path label`, `path 0 -1` or `path` of a video file")
    name, rest = row["path"], (row["rest"] or "").strip(SPACE)
    if name[0] in "\"'" and name[-1] == name[0]:
        name = name[1:-1]
    if not rest:
        return name, None, "path"
    columns = [column for column in re.split(r"[\s,]+", rest) if column]
    if columns == ["0", "-1"]:
        return name, None, "path 0 -1"
    if len(columns) > 1 and all(re.fullmatch(r"-?\d+", column) for column in columns):
        raise InputError(
            f"{where}: {line!r} has {len(columns)} numbers after the path: only VideoMAE's `path 0 -1` has two; "
            "several classes a video, or parts of a video, are not read"
        )
    if "," in rest:
        raise InputError(f"{where}: {line!r} has more columns than path and label")
    if len(columns) > 1 and "," not in row["separator"]:
        raise InputError(f"{where}: {line!r}: the class {rest!r} has blanks; write `path,class` with a comma")
    return name, rest, "path label"


def _has_header(path: str | Path) -> bool:
    """Return whether a list is a CSV with a header that names the column `path`."""
    first = next(lines_of(path), ("", ""))[1]
    return str(path).lower().endswith(".csv") and "path" in [name.strip(' "') for name in first.split(",")]


def read_classes(path: str | Path) -> dict[str, str]:
    """Return class names by number as text: `1 Archery` a line, or names alone, which count from 0."""
    numbered: dict[str, str] = {}
    plain: dict[str, str] = {}
    for where, line in lines_of(path):
        form = re.fullmatch(r"(\d+)[\s,]+(.+)", line)
        if form and str(int(form[1])) in numbered:
            raise InputError(f"{where}: class number {form[1]} is there twice")
        if form:
            numbered[str(int(form[1]))] = form[2]
        plain[str(len(plain))] = line
    if numbered and len(numbered) != len(plain):
        raise InputError(f"{str(path)!r}: some lines begin with a class's number and some do not")
    return numbered or plain


def named(entries: Sequence[Entry], classes: dict[str, str]) -> list[Entry]:
    """Return entries with their class numbers turned into names; raises InputError for a number without a name."""
    for entry in entries:
        if entry.label is not None and entry.label not in classes:
            raise InputError(f"{entry.where}: class {entry.label!r} is not one of the {len(classes)} numbers of --classes")
    return [entry._replace(label=classes[entry.label] if entry.label is not None else None) for entry in entries]


def main(arguments: Sequence[str]) -> None:
    """Run the program."""
    options = parser(__doc__)
    options.add_argument("--lists", required=True, nargs="+", metavar="FILE", help="lists, each becomes one .csv")
    add_videos_and_out(options)
    options.add_argument("--classes", metavar="FILE", help="class names by number, for lists with numbers")
    options.add_argument(
        "--allow-missing", action="store_true", help="leave out listed videos that do not exist, and list them in missing.txt"
    )
    given = options.parse_args(arguments)
    names = [Path(path).stem for path in given.lists]
    if len(set(names)) < len(names) or "summary" in names:
        raise InputError(f"--lists {names}: each becomes <name>.csv, so their names must differ")
    classes = read_classes(given.classes) if given.classes else None
    read = {Path(path).stem: unique(read_list(path, given.videos)) for path in given.lists}
    report = Report("lists")
    root, missing = os.path.abspath(given.videos), []
    for name, (entries, repeated) in read.items():
        report.notes += [f"{name}: {repeated}"] if repeated else []
        present = []
        for entry in named(entries, classes) if classes else entries:
            path = os.path.join(root, entry.name)
            if os.path.exists(path):
                present.append(Video(path, entry.label, where=entry.where * bool(entry.segment), **entry.segment._asdict()))
            else:
                missing.append(entry)
        report.add(name, present, len(entries))
        if any(os.path.isdir(video.path) for video in present):
            report.notes.append(
                f"{name} lists folders of pictures, which have no rate: check that {DESCRIPTION} with "
                f'{{"fps": "30"}}, or what it is, lies in each or in a folder above them'
            )
    refuse_missing(sum(len(entries) for entries, _ in read.values()), missing, root, allowed=given.allow_missing)
    for test in names[1:]:
        report.compare(names[0], test)
    text = "".join(f"{entry.name}\n" for entry in missing)
    report.write(given.out, probe=given.probe, extra={"missing.txt": text} if missing else None)


if __name__ == "__main__":
    run(main)
