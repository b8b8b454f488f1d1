"""The rows of a run: read from its lists, and kept in its folder: a continued run draws the same videos only from the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import distributed
from ..config.pretrain import Data
from ..data import loader, long_videos, manifest, mixture
from ..data.manifest import Video
from ..errors import InputError, printable
from ..runs.files import read_rows, write_rows

LIST = "train_rows.csv"
MORE = ", or give data.seconds_per_row= (of long videos, a row for every so many seconds)"


def read(options: Data) -> tuple[list[Video], list[Video], tuple[mixture.Source, ...]]:
    """Return the rows to pretrain on and the videos held out, without those that the doctor found broken, and the mixture."""
    rows, held, lengths = list[Video](), list[Video](), list[int]()
    for source, _ in (weights := mixture.parse(options.train)):
        videos = loader.read_videos(source, split="train", root=options.root, known_health=options.health, training=True)
        kept, others = manifest.hold_out(videos, options.held_out)
        if options.seconds_per_row:
            kept = long_videos.divide(kept, options.seconds_per_row, decoder=options.decoder.value)
        rows, held, lengths = rows + kept, held + others, [*lengths, len(kept)]
    return rows, held, mixture.share(weights, lengths)


def digest(videos: Sequence[Video]) -> str:
    """Return a SHA-256 over paths, segments and labels in their order."""
    text = "".join(f"{video.name}\0{video.label}\n" for video in videos)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def keep(folder: Path, videos: Sequence[Video]) -> None:
    """Write the rows into the run folder, once for all ranks."""
    if distributed.rank() == 0:
        write_rows(folder / LIST, ("path", "label"), ((printable(video.name), video.label or "") for video in videos))


def check_count(source: str, now: int, then: int, folder: Path) -> None:
    """Raise InputError if a list has another number of rows than when the run began."""
    if now != then:
        raise InputError(
            f"{source} lists {now} videos, the run in {folder} began with {then}: the order of the data would change; "
            "restore the list, or choose another out="
        )


def check(folder: Path, videos: Sequence[Video], meta: Mapping[str, Any], *, accept: bool) -> None:
    """Raise InputError, or with `accept` warn, if the rows are not those that a checkpoint's meta data names by `digest`."""
    if meta.get("rows", own := digest(videos)) == own:  # checkpoints of earlier versions name none
        return
    now = [(printable(video.name), video.label or "") for video in videos]
    then = [(row["path"], row["label"]) for row in read_rows(folder / LIST)]
    if then == now:  # accepted before, and no checkpoint was written since
        return
    changed = [number for number, (old, new) in enumerate(zip(then, now), start=1) if old != new]  # noqa: B905
    how = "in another order" if sorted(then) == sorted(now) else "exchanged, moved or labelled anew"
    example = f", e.g. row {changed[0]}: {then[changed[0] - 1]} then, {now[changed[0] - 1]} now" if changed else ""
    text = f"{len(changed) or 'some'} of {len(now)} rows are {how} since the run in {folder} began{example}"
    if not accept:
        raise InputError(f"{text}: restore the list, choose another out=, or add data.changed=accept to train on it as it is")
    distributed.warn([f"{text}; accepted, as data.changed says"])
