"""From a command line to the runs of a comparison: rows of values, and a seed for each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from sce_video.command_line import compose_options, given_options, override, parse_overrides
from sce_video.config.evaluate import EvaluateConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError, require
from sce_video.runs import checkpoint
from sce_video.runs.folder import length_of

RUN_FOLDER = "out"  # options of a run that the comparison sets itself
# One centre crop of two clips per video, and no few-shot classifiers: cheap enough for many runs.
EVALUATION = {"clips_per_video": "2", "num_crops": "1", "shots": "[]", "cache": "false"}


@dataclass
class Compare:
    """Options of tools/compare.py itself."""

    seeds: int = 1
    data: str = ""  # demo: its recipe and videos; empty: as the options of tools/pretrain.py say
    train: str = ""  # labelled lists of the evaluation
    test: str = ""
    out: str = "runs/compare"
    slurm: str = ""  # options of tools/launch.py slurm, separated by blanks
    table: bool = False  # only write the table

    def __post_init__(self) -> None:
        require(self.seeds, "seeds", lambda value: 1 <= value <= 1000, "from 1 to 1000")
        require(self.data, "data", lambda value: value in ("", "demo"), "demo; other data are data.train=, train= and test=")
        if bool(self.train) != bool(self.test):
            raise InputError("train= (the bank) and test= (the queries) must be given together")


class Cell(NamedTuple):
    """One run: the row that it belongs to, its seed, the words for tools/pretrain.py, and its folder."""

    row: str
    seed: int
    words: list[str]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether pretraining has ended: `config.yaml` gives its length, the newest checkpoint its step."""
        if not (self.folder / "config.yaml").is_file():
            return False
        newest = checkpoint.load_newest(self.folder / "checkpoints")
        return newest is not None and newest[1]["step"] >= length_of(self.folder, newest[1]["videos"])

    @property
    def options(self) -> PretrainConfig:
        """The checked options of the run."""
        return compose_options("pretrain", PretrainConfig, self.words)


def read_plan(arguments: Sequence[str]) -> tuple[Compare, list[Cell], dict[str, str]]:
    """Return the comparison's own options, all runs, and the options of the evaluation by name.

    Raises InputError for what any of the runs or the evaluation would refuse, before the first one begins.
    """
    own_names = {item.name for item in fields(Compare)}
    own: dict[str, str] = {}
    evaluation = dict(EVALUATION)
    axes: dict[str, list[Any]] = {}
    shared: list[str] = []
    for word in arguments:
        key, sign, value = word.partition("=")
        if not sign:
            raise InputError(f"cannot read {word!r}: write option=value; --help shows commands")
        if key in own_names:
            own[key] = value
        elif key.startswith("evaluate."):
            evaluation[key.removeprefix("evaluate.")] = value
        elif len(values := choices_of(word)) > 1 or key == "methods":
            axes["method" if key == "methods" else key] = values
        else:
            shared.append(override(key, values[0]) if value.startswith("[") else word)
    options = given_options(own, Compare)
    if "demo" in (options.data, own.get("recipe")) or not any(word.startswith(("recipe=", "data.train=")) for word in shared):
        options.train, options.test = options.train or "synthetic", options.test or "synthetic"
    if repeated := [key for key in ("seed", RUN_FOLDER) if key in axes or any(word.startswith(f"{key}=") for word in shared)]:
        raise InputError(f"{repeated[0]}= is set for each run: give seeds=NUMBER, and out= for the folder of all")
    cells = [
        cell(row, seed, shared, Path(options.out))
        for seed in range(options.seeds)  # every row has a first run early
        for row in ([*zip(axes, values, strict=True)] for values in itertools.product(*axes.values()))
    ]
    for one in cells:
        compose_options("pretrain", PretrainConfig, one.words)
    if options.train:
        compose_evaluation(options, evaluation, Path("checked"), Path("checked"))
    return options, cells, evaluation


def choices_of(word: str) -> list[Any]:
    """Return the values of `option=[a,b]` or Hydra's sweep `option=a,b`; of any other option its one value."""
    (one,) = parse_overrides([word]) or (None,)
    if one is None:
        raise InputError(f"cannot read {word!r}: write key=value")
    if one.is_sweep_override():
        return list(one.sweep_string_iterator())
    value = one.value()
    return value if isinstance(value, list) else [value]


def cell(row: Sequence[tuple[str, Any]], seed: int, shared: Sequence[str], out: Path) -> Cell:
    """Return the run of one row and seed."""
    name = ", ".join(str(value) if key == "method" else f"{key}={value}" for key, value in row) or "run"
    folder = out / re.sub(r"[^\w.=-]+", "_", name) / f"seed{seed}"
    # The scores are taken afterwards.
    words = ["monitor.train=''", "monitor.val=''", *shared, *(override(key, value) for key, value in row), f"seed={seed}"]
    return Cell(name, seed, [*words, override("out", str(folder))], folder)


def compose_evaluation(options: Compare, values: dict[str, str], run: Path, out: Path) -> EvaluateConfig:
    """Return the checked options of tools/evaluate.py for a run."""
    words = [*(f"{key}={value}" for key, value in values.items()), override("train", options.train)]
    words += [override("test", options.test), override("checkpoint", str(run)), override("out", str(out))]
    return compose_options("evaluate", EvaluateConfig, words)
