"""Write lists of any folder of videos, with or without classes by subfolder, and with an optional random split.

python data_prep/folder.py --videos /data/my_videos --out lists/mine
python data_prep/folder.py --videos /data/my_classes --out lists/mine --test 0.2 --seed 0
python data_prep/folder.py --videos /data/my_videos --out lists/mine --labels none --probe 200

Writes all.csv, or train.csv and test.csv with --test, and summary.json. Each class is split on its own, so that both
lists have all classes. The list of a video depends on the seed and its path: videos that are added later move others only
by rounding.

A random split puts clips from one recording into both lists, which makes every result too good: use the official lists
for published data sets (ucf101.py, hmdb51.py, kinetics.py).
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Sequence

from annotations.file_search import find_videos
from annotations.summary_report import Report
from command_line import add_videos_and_out, parser, run

from sce_video.data.manifest import VIDEO_SUFFIXES, Video
from sce_video.errors import InputError

LABELS = ("auto", "folder", "none")


def label_of(name: str, labels: str, *, classes: bool) -> str | None:
    """Return the class of a file by its path below the videos' folder.

    labels: `auto` takes the subfolder if `classes` (all videos lie exactly one level down), `folder` the folder that the
    video lies in, `none` nothing. Raises InputError: `folder` and the video lies in no subfolder.
    """
    parts = name.split(os.sep)
    if labels == "none" or (labels == "auto" and not classes):
        return None
    if len(parts) < 2:
        raise InputError(f"{name!r} lies in no subfolder, so it has no class: move it, or leave --labels folder out")
    label = parts[-2]
    if label != label.strip():
        raise InputError(f"the folder of {name!r} begins or ends with a blank, which a class cannot: rename it")
    return label


def split(videos: Sequence[Video], root: str, *, test: float, seed: int) -> tuple[list[Video], list[Video]]:
    """Split videos into train and test, class by class; a class of two or more videos has at least one in each.

    test: share of the videos, in (0, 1). The draw sorts videos by a hash of the seed and the path below `root`.
    """

    def draw(video: Video) -> bytes:
        return hashlib.sha256(f"{seed}:{os.path.relpath(video.path, root)}".encode("utf-8", "surrogateescape")).digest()

    groups: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        groups[video.label or ""].append(video)
    chosen: set[str] = set()
    for group in groups.values():
        number = min(max(1, math.floor(test * len(group) + 0.5)), len(group) - 1)
        chosen |= {video.path for video in sorted(group, key=draw)[:number]}
    return [v for v in videos if v.path not in chosen], [v for v in videos if v.path in chosen]


def share(text: str) -> float:
    """Parse a number in (0, 1) (a `type` for argparse)."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1, such as 0.2")
    return value


def main(arguments: Sequence[str]) -> None:
    """Run the program."""
    options = parser(__doc__)
    add_videos_and_out(options)
    options.add_argument(
        "--labels",
        choices=LABELS,
        default="auto",
        help="auto: a class per subfolder if all videos lie one level down; folder: the folder each lies in; none",
    )
    options.add_argument("--test", type=share, metavar="SHARE", help="share of the videos for test.csv, in (0, 1)")
    options.add_argument("--seed", type=int, default=0, help="seed of the split (default: 0)")
    given = options.parse_args(arguments)
    found = find_videos(given.videos)
    if not found.names:
        raise InputError(f"{given.videos!r} holds no video (known endings: {' '.join(sorted(VIDEO_SUFFIXES))})")
    classes = all(name.count(os.sep) == 1 for name in found.names)
    videos = [Video(os.path.join(found.root, name), label_of(name, given.labels, classes=classes)) for name in found.names]
    report = Report("folder")
    report.notes += found.notes()
    if given.test is None:
        report.add("all", videos)
    else:
        if len(videos) < 2:
            raise InputError(f"--test {given.test} needs two videos or more, {given.videos!r} holds {len(videos)}")
        train, test = split(videos, found.root, test=given.test, seed=given.seed)
        report.add("train", train)
        report.add("test", test)
        report.compare("train", "test")
        report.notes.append(f"split at random, seed {given.seed}: clips cut from one recording may be in both lists")
    report.write(given.out, probe=given.probe)


if __name__ == "__main__":
    run(main)
