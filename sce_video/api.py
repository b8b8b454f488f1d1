"""The Python interface (docs/python.md): the programs as functions that return objects, usable in a notebook.

Options are those of the programs, by name: `optim={"epochs": 5}` or `**{"optim.epochs": 5}`. Bad input raises `InputError`,
training that cannot go on `Stopped`, an interrupt `Preempted` once the run has been saved; the same call continues a run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn

from .command_line import compose_options, override
from .config.evaluate import EvaluateConfig, RetrievalConfig
from .config.finetune import FinetuneConfig
from .config.pretrain import PretrainConfig
from .errors import InputError
from .evaluation.video_encoder import Embedding, VideoEncoder, embed
from .models.encoder import FrozenEncoder
from .programs.evaluate import evaluate as run_evaluation
from .programs.finetune import finetune as run_finetuning
from .programs.pretrain import pretrain as run_pretraining
from .programs.retrieval import PROTOCOL
from .programs.retrieval import retrieve as run_search
from .weights import load

__all__ = ["Embedding", "Finetuned", "Pretrained", "Scored", "VideoEncoder", "embed", "evaluate", "finetune", "load_classifier"]
__all__ += ["load_encoder", "pretrain", "retrieve"]
Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Pretrained:
    """A run of pretraining; it may be given wherever a checkpoint is expected."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def scores(self) -> dict[str, float]:
        """The last scores of the encoder, shares in [0, 1] (`knn_top1`, `r_at_1`, ...); empty if nothing scored the run."""
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text().splitlines()]
        scored = [line for line in lines if any(name.startswith("eval/") for name in line)]
        return {name[5:]: value for name, value in scored[-1].items() if name.startswith("eval/")} if scored else {}

    def encoder(self, *, trust: bool = False) -> VideoEncoder:
        """Return the trained encoder."""
        return load_encoder(self.folder, trust=trust)


@dataclass(frozen=True)
class Finetuned:
    """A run of finetuning: its folder, and the content of result.json, one per split."""

    folder: Path
    results: list[dict[str, Any]]

    def __fspath__(self) -> str:
        return str(self.folder)

    @property
    def scores(self) -> dict[str, float]:
        """`top1` and `top5` of the test list, means over the splits, in [0, 1]."""
        return {name: sum(one["test"][name] for one in self.results) / len(self.results) for name in ("top1", "top5")}

    def classifier(self) -> tuple[FrozenEncoder, list[str]]:
        """Return the trained classifier and its class names."""
        return load.load_classifier(self.folder)


@dataclass(frozen=True)
class Scored:
    """An evaluation: `scores` of the checkpoint and of the same network with `random_weights`, and all of the JSON file."""

    scores: dict[str, float]
    random_weights: dict[str, float]
    result: dict[str, Any]


def pretrain(
    recipe: str | None = "demo", *, build_method: Callable[[PretrainConfig], nn.Module] | None = None, **options: Any
) -> Pretrained:
    """Pretrain as `tools/pretrain.py recipe=... options`, or continue the run in `out`.

    build_method: builds a method of one's own, see `methods.Method`.
    """
    cfg = compose_options("pretrain", PretrainConfig, _words({"recipe": recipe}, options))
    if cfg.preview:
        raise InputError("preview= draws a picture and trains nothing: it is for tools/pretrain.py")
    return Pretrained(run_pretraining(cfg, build_method) if build_method else run_pretraining(cfg))


def finetune(checkpoint: Source = "", *, train: Source, test: Source, recipe: str = "demo", **options: Any) -> Finetuned:
    """Train with labels and test, as `tools/finetune.py`, or continue the run in `out`."""
    own = {"recipe": recipe, "checkpoint": checkpoint, "train": train, "test": test}
    cfg = compose_options("finetune", FinetuneConfig, _words(own, options))
    if cfg.predict:
        raise InputError("predict= classifies videos and trains nothing: use load_classifier, or tools/finetune.py")
    return Finetuned(cfg.run_folder, run_finetuning(cfg))


def evaluate(checkpoint: Source, *, train: Source, test: Source, **options: Any) -> Scored:
    """Score frozen features as `tools/evaluate.py`: kNN, retrieval, few-shot, linear. The table is printed and kept as JSON."""
    own = {"checkpoint": checkpoint, "train": train, "test": test}
    result = run_evaluation(compose_options("evaluate", EvaluateConfig, _words(own, options)))

    def scores(row: dict[str, Any]) -> dict[str, float]:
        found = {"knn_top1": row["knn_top1"], "r_at_1": row["recall_at_k"]["1"], "map": row["mean_average_precision"]}
        return found | ({"linear": row["linear"]["accuracy"]} if row["linear"] else {})

    return Scored(scores(result["rows"]["checkpoint"]), scores(result["rows"]["random weights"]), result)


def retrieve(checkpoint: Source, *, train: Source, test: Source, **options: Any) -> Scored:
    """Score retrieval as `tools/retrieval.py`: `r_at_1`, `r_at_5`, ... and `map` by the paper's protocol."""
    own = {"checkpoint": checkpoint, "train": train, "test": test}
    result = run_search(compose_options("retrieval", RetrievalConfig, _words(own, options)))

    def scores(row: dict[str, Any]) -> dict[str, float]:
        found = row[PROTOCOL]
        return {f"r_at_{k}": value for k, value in found["recall_at_k"].items()} | {"map": found["mean_average_precision"]}

    return Scored(scores(result["rows"]["checkpoint"]), scores(result["rows"]["random weights"]), result)


def load_encoder(path: Source, backbone: str | None = None, *, trust: bool = False, key: str = "") -> VideoEncoder:
    """Return the encoder of a run, checkpoint or weight file, see `weights.load.load_encoder`; it also reads videos."""
    found = load.load_encoder(os.fspath(path), backbone, trust=trust, key=key)
    settings: dict[str, Any] = {"mean": found.mean, "std": found.std, "clip": found.clip, "report": found.report}
    return VideoEncoder(found.backbone, found.name, projector=found.projector, **settings)


def load_classifier(path: Source, *, trust: bool = False) -> tuple[FrozenEncoder, list[str]]:
    """Return the classifier of a run of finetuning and its class names, see `weights.load.load_classifier`."""
    return load.load_classifier(os.fspath(path), trust=trust)


def _words(own: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return options as the words of a command line: sections as nested mappings, or dotted names."""
    words = []
    for name, value in {**own, **options}.items():
        if isinstance(value, Mapping):
            words += _words({}, {f"{name}.{key}": inner for key, inner in value.items()})
        elif name != "recipe" or value is not None:
            value = value.value if isinstance(value, Enum) else os.fspath(value) if isinstance(value, os.PathLike) else value
            words.append(override(name, list(value) if isinstance(value, tuple) else value))
    return words
