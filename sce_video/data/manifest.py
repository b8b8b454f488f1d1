"""Read lists of videos, or of images, in every common format as `list[Video]`.

| given                                        | read as                                                               |
|----------------------------------------------|-----------------------------------------------------------------------|
| `x.csv` with a header that has `path`        | `path`, optionally `label` and a segment; other columns are ignored   |
| a video                                      | a list of one                                                         |
| any other file                               | one video per line: `path label` or `path`; skips blank lines and `#` |
| a folder whose videos all lie one level down | one class per subfolder                                               |
| any other folder                             | its videos at any depth, without labels                               |

A video is a file with a known extension, a folder `*.frames` or a zip `*.frames.zip` of pictures
(`readers/frame_folder.py`). In a .csv a path may be any folder of pictures. An image is a .jpg, .jpeg, .png or .webp file
(`readers/picture.py`). A folder without any video is read as one of images by the same rules; beside videos, pictures are
passed over (they are covers and thumbnails). A list may name either, and a run reads one kind (`check_kind`).
A row with a segment (`segments.py`) is that part of its video only; two segments of a video are two rows.

Relative paths start at `root`, by default the manifest's folder. Labels are kept as text ("3", "archery"), so that two
lists of a data set need no common index; `label_ids` numbers them. No video is opened here.
"""

from __future__ import annotations

import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from .. import distributed
from ..errors import InputError, log
from . import segments
from .readers.media import FRAMES_FOLDER, FRAMES_ZIP, PICTURES

VIDEO_SUFFIXES = frozenset([
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".m2ts", ".ogv", ".ts", ".webm", ".wmv"
])  # fmt: skip


KNOWN = " ".join(sorted([*VIDEO_SUFFIXES, *PICTURES]))
IMAGE_RECIPES = "sce_r50_imagenet, sce_r18_imagenet100, sce_r18_stl10, sce_r18_cifar, linear_imagenet"


class Video(NamedTuple):
    """One row: an absolute path (not resolved, not checked), the label as written, and the segment; None without one."""

    path: str
    label: str | None
    line: int = 0  # line number in the list, from 1; 0 for a folder
    health: str = ""  # the doctor's `status: reason`; "" if it has not examined the file (see data.health)
    start: float | None = None  # of the segment [start, end), see `segments`; None: from the beginning
    end: float | None = None  # None: to the end
    in_frames: bool = False  # whether these are numbers of frames; else seconds
    where: str = ""  # `file:line` of a row with a segment
    own: str = ""  # `file.py:Name` of a data set of one's own, whose row is `line` (see sources.own)

    @property
    def segment(self) -> segments.Segment:
        """The part of the video that this row is; false for the whole."""
        return segments.Segment(self.start, self.end, self.in_frames)

    @property
    def name(self) -> str:
        """The path, and the segment if there is one: no two rows but repeated ones have the same."""
        return f"{self.path} {self.segment}" if self.segment else self.path


def columns(videos: Sequence[Video]) -> dict[str, list[str]]:
    """Return path, label, and the columns of segments if there are any, as text: a list that `read` reads."""
    named = {"path": [video.path for video in videos], "label": [video.label or "" for video in videos]}
    return named | segments.as_columns(video.segment for video in videos)


def read(path: str | Path, root: str | Path | None = None, *, labels: str = "file") -> list[Video]:
    """Read a manifest, list or folder.

    labels: `file` reads classes as in the table above; `folder` uses the name of each video's folder, for lists without
    labels such as UCF101's test lists. Raises InputError for a missing path, an invalid row (with file:line), no video.
    """
    path = Path(path)
    if root is not None and not Path(root).is_dir():
        raise InputError(f"root {str(root)!r} is not a folder: it is where the manifest's relative paths start")
    if path.is_dir():
        videos = _read_folder(path)
    elif path.is_file() and is_listed_name(path.name):
        videos = [Video(os.path.abspath(path), None)]
    elif path.is_file():
        _refuse_binary(path)
        base = Path(os.path.abspath(root if root is not None else path.parent))
        videos = _read_csv(path, base) if path.suffix.lower() == ".csv" else _read_list(path, base)
    else:
        raise InputError(f"manifest {str(path)!r} does not exist: give a .csv, a list of videos or a folder")
    if not videos:
        raise InputError(f"{str(path)!r} holds no video and no image (known extensions: {KNOWN})")
    _warn_of_repeats(path, videos)
    if labels == "folder":
        videos = [video._replace(label=Path(video.path).parent.name) for video in videos]
    return videos


def label_ids(*lists: Iterable[Video]) -> tuple[list[str], list[list[int]]]:
    """Return the class names of all lists, sorted (numbers by value), and each list's ids; InputError without a label."""
    rows = [list(videos) for videos in lists]
    for video in (video for videos in rows for video in videos):
        if video.label is None:
            raise InputError(
                f"{video.path} has no label: evaluation needs one for every video; if its folder is its class, add labels=folder"
            )
    names = {video.label for videos in rows for video in videos if video.label is not None}
    numbers: dict[int, str] = {}
    for name in sorted(name for name in names if name.isdecimal()):
        if (other := numbers.setdefault(int(name), name)) != name:
            raise InputError(f"classes {other!r} and {name!r} are the same number: write it one way in all lists")
    names_sorted = sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name))
    index = {name: i for i, name in enumerate(names_sorted)}
    return names_sorted, [[index[video.label] for video in videos if video.label is not None] for videos in rows]


def _warn_of_repeats(path: Path, videos: Sequence[Video]) -> None:
    first: dict[tuple[str, segments.Segment], Video] = {}
    keys = ((os.path.normpath(video.path), video.segment) for video in videos)
    again = [(one, video) for key, video in zip(keys, videos, strict=True) if (one := first.setdefault(key, video)) is not video]
    if again:
        one, video = max(again, key=lambda pair: pair[0].label != pair[1].label)
        labels = ", with another label" if one.label != video.label else ""
        text = f"{len(again)} rows list a video again, e.g. {one.name} (lines {one.line} and {video.line}{labels})"
        distributed.warn([f"{path}: {text}"])


def warn_of_short(videos: Sequence[Video], clip_seconds: float) -> None:
    """Warn of segments that are shorter than a clip: as short videos do, they give shorter clips."""
    short = [video for video in videos if video.end is not None and not video.in_frames]
    short = [video for video in short if video.end is not None and video.end - (video.start or 0) < clip_seconds]
    if short:
        text = f"{len(short)} of {len(videos)} segments are shorter than a clip of {clip_seconds:g} s"
        distributed.warn([f"{text} and give shorter clips, e.g. {short[0].segment} ({short[0].where})"])


def hold_out(videos: Sequence[Video], share: float) -> tuple[list[Video], list[Video]]:
    """Split into videos to train on and held-out ones: of each class, in the list's order, every round(1 / share)-th.

    share: in [0, 0.5]; 0 holds none out. Videos without a label are one class. All segments of a video go where its first does.
    """
    every = round(1 / share) if share else len(videos) + 1
    kept: list[Video] = []
    held: list[Video] = []
    met: Counter[str | None] = Counter()
    sides: dict[str, list[Video]] = {}
    for video in videos:
        side = sides.get(video.path) if video.segment else None
        if side is None:
            met[video.label] += 1
            sides[video.path] = side = kept if met[video.label] % every else held
        side.append(video)
    return kept, held


def compare(train: Sequence[Video], test: Sequence[Video]) -> list[str]:
    """Return warnings about two labelled lists: videos in both, classes in one only, gaps in numbered classes."""
    warnings = []
    with ThreadPoolExecutor(16) as pool:  # a look at each file is slow on network disks
        resolved = [list(pool.map(os.path.realpath, (video.path for video in videos))) for videos in (train, test)]
    in_train: dict[str, list[Video]] = {}
    for video, path in zip(train, resolved[0], strict=True):
        in_train.setdefault(path, []).append(video)
    same = [(video, in_train[path]) for video, path in zip(test, resolved[1], strict=True) if path in in_train]
    found = [(video, others[0], _overlapping(video, others)) for video, others in same]
    shared = [(video, both) for video, _, both in found if both]
    apart = [(video, other) for video, other, both in found if not both]
    for pairs, what in (
        (shared, "test videos are in the train list too"),
        (apart, "test segments are of videos with training segments, so that recording, not class, may make them alike"),
    ):
        if pairs:
            first, other = pairs[0]
            warnings.append(
                f"{len(pairs)} of {len(test)} {what}, e.g. {first.name} (line "
                f"{other.line} of the train list, line {first.line} of the test list)"
            )
    classes = [{video.label for video in videos if video.label is not None} for videos in (train, test)]
    for name, own, others in (("test", classes[0], classes[1]), ("train", classes[1], classes[0])):
        if only := sorted(own - others):
            warnings.append(f"{len(only)} of {len(own | others)} classes have no {name} video, e.g. {only[0]!r}")
    numbers = sorted(int(label) for label in classes[0] | classes[1] if label.isdecimal())
    if numbers and len(numbers) == len(classes[0] | classes[1]):
        gaps = sorted(set(range(numbers[-1])) - set(numbers) - {0})  # labels may start at 1, as UCF101's do
        if gaps:
            warnings.append(f"labels are numbers up to {numbers[-1]}, but no video has {gaps[0]} ({len(gaps)} such gaps)")
    return warnings


def _overlapping(video: Video, others: Sequence[Video]) -> Video | None:
    """Return a row of the same video whose segment shares frames with this one's, or may do so (seconds beside frames)."""
    for other in others:
        known = video.in_frames == other.in_frames or not (video.segment and other.segment)
        after = other.end is not None and (video.start or 0) >= other.end
        before = video.end is not None and (other.start or 0) >= video.end
        if not (known and (after or before)):
            return other
    return None


def is_video_name(name: str) -> bool:
    """Return whether a name has the extension of a video file or of a folder or zip of pictures."""
    return Path(name).suffix.lower() in (*VIDEO_SUFFIXES, FRAMES_FOLDER) or name.lower().endswith(FRAMES_ZIP)


def is_listed_name(name: str) -> bool:
    """Return whether a name has the extension of a video or of an image."""
    return is_video_name(name) or name.lower().endswith(PICTURES)


def check_kind(videos: Sequence[Video], clip_seconds: float) -> None:
    """Raise InputError for images where clips have a duration, and for videos where they are single images (0 seconds)."""
    images = [video.path.lower().endswith(PICTURES) for video in videos]
    if clip_seconds and True in images:
        raise InputError(
            f"{videos[images.index(True)].path} is an image, and this run takes clips of {clip_seconds:g} s from videos: for "
            f"images use one of the recipes {IMAGE_RECIPES}; pictures that are frames of a video belong into a folder NAME.frames"
        )
    if not clip_seconds and False in images:
        raise InputError(
            f"{videos[images.index(False)].path} is no image, and this run takes single images (data.clip_seconds=0): train on "
            "videos with a recipe for them, e.g. recipe=sce_r3d18_ucf101 or sce_r3d18_k400"
        )


def find_files(folder: str | Path, *, existing: bool = False) -> tuple[list[str], Counter[str]]:
    """Return the videos below a folder, as paths relative to it, and the other files by ending.

    Linked folders are searched too, after the others, and each folder once. Hidden folders, `._*` and the folders that NAS
    and notebooks leave are not looked at. existing: leave out broken links and pipes.

    Raises InputError for a folder that cannot be read.
    """
    videos, images, passed = _search(folder, existing=existing)
    return videos, passed + Counter(_ending(name) for name in images)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no ending"


def _search(folder: str | Path, *, existing: bool = False) -> tuple[list[str], list[str], Counter[str]]:
    """Return the videos and the images below a folder, and the other files by ending; see `find_files`."""
    root, videos, images, passed = os.path.abspath(folder), list[str](), list[str](), Counter[str]()
    waiting, linked, seen = [""], list[str](), set[tuple[int, int]]()
    while waiting or linked:
        below = (waiting or linked).pop()
        try:
            here = os.stat(os.path.join(root, below))
            if (here.st_dev, here.st_ino) in seen:
                continue
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(os.path.join(root, below)) as items:
                for item in items:
                    name, is_folder = os.path.join(below, item.name), os.path.isdir(item) if item.is_symlink() else item.is_dir()
                    pictures = item.name.lower().endswith(FRAMES_FOLDER)
                    if item.name.startswith("._") or (is_folder and item.name.startswith((".", "@eaDir", "__MACOSX"))):
                        continue
                    if is_folder and not pictures:
                        (linked if item.is_symlink() else waiting).append(name)
                    elif (
                        is_listed_name(item.name)
                        and is_folder == pictures
                        and (not existing or is_folder or os.path.isfile(item))
                    ):
                        (videos if is_video_name(item.name) else images).append(name)
                    else:
                        passed[_ending(item.name)] += 1
        except OSError as error:
            raise InputError(f"cannot read {os.path.join(root, below)!r}: {error.strerror}") from error
    for names in (videos, images):
        names.sort(key=lambda name: name.split(os.sep))
    return videos, images, passed


def _read_folder(folder: Path) -> list[Video]:
    videos, images, passed = _search(folder)
    names, what = (images, "images") if images and not videos else (videos, "videos")
    if videos:
        passed.update(_ending(name) for name in images)
    if passed and distributed.rank() == 0:
        kinds = ", ".join(f"{count} {ending}" for ending, count in passed.most_common(8))
        log.info(f"{folder}: {len(names)} {what}; passed over {passed.total()} other files ({kinds})")
    classes = all(name.count(os.sep) == 1 for name in names)
    return [Video(os.path.join(os.path.abspath(folder), name), name.split(os.sep)[0] if classes else None) for name in names]


def _resolve_path(path: str, base: Path, where: str) -> str:
    if not path or "\0" in path or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:|subfile,", path):
        raise InputError(f"{where}: {path!r} is not a file path (URLs and protocols are not supported)")
    whole = os.path.join(base, path)
    if not whole.isascii() and not os.path.lexists(whole):  # macOS writes accents as two characters (NFD), others as one
        forms = [unicodedata.normalize(form, whole) for form in ("NFC", "NFD")]
        whole = next((form for form in forms if os.path.lexists(form)), whole)
    elif path != path.strip() and not os.path.lexists(whole):
        raise InputError(f"{where}: {path!r} begins or ends with a blank, and there is no such file: remove the blank")
    return whole


def _refuse_binary(path: Path) -> None:
    with open(path, "rb") as file:
        if b"\0" in file.read(4096):
            raise InputError(f"{str(path)!r} is no list but a binary file: give a .csv, a list of videos, a folder or a video")


def _read_csv(path: Path, base: Path) -> list[Video]:
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        try:
            columns = [name.strip() for name in reader.fieldnames or []]
            if "path" not in columns:
                raise InputError(f"{path}:1: the header is {columns}, it must name `path` and may name `label`, `start`, `end`")
            distributed.warn([doubt] if (doubt := segments.check_columns(columns, f"{path}:1")) else [])
            reader.fieldnames = columns
            return [_csv_video(row, columns, base, f"{path}:{reader.line_num}", reader.line_num) for row in reader]
        except csv.Error as error:  # Python 3.10 rejects NUL bytes
            raise InputError(f"{path}:{reader.line_num + 1}: {error}; the row that begins here is not CSV") from error


def _csv_video(row: dict[Any, Any], columns: list[str], base: Path, where: str, line: int) -> Video:
    if None in row or row["path"] is None or (row.get("label", "") is None):
        got = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None) or [])
        raise InputError(f"{where}: {got} columns where the header has {len(columns)}; quote values with commas")
    video = Video(_resolve_path(row["path"], base, where), (row.get("label") or "").strip() or None, line)
    part = segments.parse(row, where)
    return video._replace(start=part.start, end=part.end, in_frames=part.in_frames, where=where) if part else video


def _read_list(path: Path, base: Path) -> list[Video]:
    videos = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline=None) as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            where = f"{path}:{number}"
            name, label = line, None
            if not is_listed_name(line):  # `a b.mp4` is one path, `a b.mp4 3` has a label
                *names, label = re.split(r"[\s,]+", line)
                name = line[: line.rindex(label)].rstrip(" \t,") if names else ""
                label = label.strip("\"'")
                if not is_listed_name(name.strip("\"'")) or line.startswith('["'):
                    raise InputError(
                        f"{where}: {line!r} is not `path label` or `path` with the extension of a video or image "
                        f"({KNOWN}); for a table use a .csv with the header path,label"
                    )
            videos.append(Video(_resolve_path(name.strip("\"'"), base, where), label, number))
    return videos
