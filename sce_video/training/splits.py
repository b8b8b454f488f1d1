"""Finetuning on several splits of a data set: a run for each, and their mean."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config.finetune import FinetuneConfig


def split_configs(cfg: FinetuneConfig, out: Path) -> list[FinetuneConfig]:
    """Return the options of each split's run, or cfg itself."""
    if not cfg.splits:
        return [replace(copy.deepcopy(cfg), out=str(out))]
    configs = []
    for split in cfg.splits:
        lists = {name: getattr(cfg, name).replace("%", str(split)) for name in ("train", "test", "val")}
        # Copies of the sections, so that the runs share nothing; replace() checks the options again.
        configs.append(replace(copy.deepcopy(cfg), **lists, splits=[], out=str(out / f"split_{split}")))
    return configs


def print_splits(out: Path, splits: list[int], results: list[dict[str, Any]]) -> None:
    """Print the splits and their mean, and write them to splits.json."""
    top = {name: [100 * result["test"][name] for result in results] for name in ("top1", "top5")}
    print(f"{'split':<8}{'top-1':>8}{'top-5':>8}   scored")
    for split, result, top1, top5 in zip(splits, results, *top.values(), strict=True):
        print(f"{split:<8}{top1:8.2f}{top5:8.2f}   {result['test']['scored']:.0f}/{result['test']['listed']:.0f}")
    means = {name: math.fsum(values) / len(values) for name, values in top.items()}
    print(f"{'mean':<8}{means['top1']:8.2f}{means['top5']:8.2f}")
    summary = {"splits": dict(zip(map(str, splits), results, strict=True)), "mean": means}
    (out / "splits.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"written: {out / 'splits.json'}")
