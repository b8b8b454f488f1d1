"""The first and last lines of a run, and the lists and the command that the programs after it take."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..config.pretrain import PretrainConfig
from ..config.shared import Labels
from ..data import manifest, mixture
from ..data.loader import BUILT_IN
from ..data.manifest import Video
from ..runs.files import write_rows


def remarks(cfg: PretrainConfig, videos: Sequence[Video], *, scored: bool) -> list[str]:
    """Return lines for the start of the run: how it goes on from another, and what would score it."""
    lines = [f"after: with all of the state of {cfg.after}, then a rate from {cfg.optim.lr:g} to 0"] if cfg.after else []
    if not scored and cfg.data.train not in BUILT_IN:
        labels = all(video.label is not None for video in videos)
        by_label = "data.held_out=0.2 (every fifth video of a class is scored and not trained on) or " if labels else ""
        lines.append(f"not scored: add {by_label}monitor.videos=256 (two clips of a video are matched, without labels)")
    return lines


def next_command(cfg: PretrainConfig, folder: Path, held_out: Path | None) -> str:
    """Return the command that uses a finished run, quoted for the shell. held_out: folder of the lists of a scored split."""
    monitor, scored = cfg.monitor, {}
    if held_out is not None:
        scored = {"train": str(held_out / "train.csv"), "test": str(held_out / "held_out.csv")}
    elif monitor.train and (monitor.train not in BUILT_IN or cfg.data.train == monitor.train):
        scored = {"train": monitor.train, "test": monitor.val, "root": monitor.root}
        scored |= {"labels": monitor.labels.value} if monitor.labels is not Labels.file else {}
    program, options = "retrieval", scored
    if not scored:
        out = next(path for path in _features_files(folder) if not path.exists())
        program, options = "features", {"data": mixture.parse(cfg.data.train)[0][0], "root": cfg.data.root, "out": str(out)}
    options |= {"trust": "true"} if ":" in cfg.model.backbone else {}  # a network of the user's own
    words = [f"checkpoint={folder}", *(f"{name}={value}" for name, value in options.items() if value)]
    return f"python tools/{program}.py {shlex.join(words)}"


def _features_files(folder: Path) -> Iterator[Path]:
    yield folder / "features.npz"
    yield from (folder / f"features_{number}.npz" for number in itertools.count(2))


def write_lists(folder: Path, videos: Sequence[Video], held: Sequence[Video]) -> None:
    """Write train.csv and held_out.csv, of absolute paths, labels and segments, for the programs that score a run."""
    folder.mkdir(exist_ok=True)
    for name, part in (("train", videos), ("held_out", held)):
        columns = manifest.columns(part)
        write_rows(folder / f"{name}.csv", [*columns], zip(*columns.values(), strict=True))
