"""Write the six lists of three official splits, for data sets whose splits are published as files (UCF101, HMDB51)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

from annotations.entries import Entry, refuse_shared, unique
from annotations.file_search import Matcher, find_videos, refuse_missing
from annotations.summary_report import Report


class Split(NamedTuple):
    """The rows of one official split."""

    train: list[Entry]
    test: list[Entry]


def add_splits(options: argparse.ArgumentParser) -> None:
    """Add --splits and --allow-missing."""
    options.add_argument(
        "--splits",
        nargs="+",
        type=int,
        choices=(1, 2, 3),
        default=[1, 2, 3],
        metavar="K",
        help="splits to write (default: 1 2 3)",
    )
    options.add_argument(
        "--allow-missing", action="store_true", help="leave out listed videos that do not exist, and list them in missing.txt"
    )


def write_splits(
    splits: Mapping[int, Split], published: Mapping[int, tuple[int, int]], options: argparse.Namespace, program: str
) -> None:
    """Write train<k>.csv and test<k>.csv of every split, missing.txt and summary.json.

    published: the official numbers of videos. Other numbers are reported but accepted, since a list may be cut on purpose.
    Raises InputError for a video in both lists of a split or with two classes, and for missing files that are not allowed.
    """
    found = find_videos(options.videos)
    matcher = Matcher(found)
    report = Report(program)
    report.notes += found.notes()
    missing: dict[str, Entry] = {}
    used: set[str] = set()
    every: dict[str, Entry] = {}
    for number, split in splits.items():
        refuse_shared(split.train, split.test)
        for part, rows in zip(("train", "test"), split, strict=True):
            entries, repeated = unique(rows)
            report.notes += [repeated] if repeated else []
            matched = matcher.match(entries)
            every.update({entry.name: entry for entry in entries})
            missing.update({entry.name: entry for entry in matched.missing})
            used |= matched.used
            report.add(f"{part}{number}", matched.present, len(entries))
        if (counts := (len(split.train), len(split.test))) != published[number]:
            report.notes.append(f"split {number} lists {counts} train and test videos; published are {published[number]}")
    refuse_missing(len(every), missing.values(), found.root, allowed=options.allow_missing, found=found)
    for number in splits:
        report.compare(f"train{number}", f"test{number}")
    if extra := sorted(set(found.names) - used):
        report.notes.append(f"{len(extra)} videos of {found.root!r} are in no list, e.g. {extra[0]!r}")
    names = "".join(f"{name}\n" for name in sorted(missing))
    report.write(options.out, probe=options.probe, extra={"missing.txt": names} if names else None)
