"""The end of a comparison: a table as Markdown and CSV, and a plot."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from compare.plan import Cell
from sce_video.evaluation.pictures import COLOURS, GREY, WIDTH, save, write
from sce_video.runs.files import write_atomically

RESULT = "compare.json"  # beside a run's checkpoints
SHARES = {"kNN": "%", "R@1": "%", "linear": "%"}
COLUMNS = {**SHARES, "loss": "", "wall": "s", "CPU": "s"}
UNTRAINED = "random weights"

Scores = dict[str, dict[int, dict[str, float]]]  # row -> seed -> column -> value


def collect(cells: Sequence[Cell]) -> Scores:
    """Return the scores of the runs that have them, and those of their networks with random weights."""
    found: Scores = {}
    for cell in cells:
        path = cell.folder / RESULT
        result = json.loads(path.read_text()) if path.is_file() else {}
        found.setdefault(cell.row, {})
        if result:
            found[cell.row][cell.seed] = result["trained"]
        if result.get("untrained"):
            found.setdefault(UNTRAINED, {})[cell.seed] = result["untrained"]
    untrained = found.pop(UNTRAINED, None)
    return found | ({UNTRAINED: untrained} if untrained else {})


def spread(values: Sequence[float], *, digits: int) -> str:
    """Return `mean ± deviation` of several values, which is the sample's; of one the value alone."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def markdown(scores: Scores, seeds: int, about: Sequence[str]) -> str:
    """Return the table with its notes; `runs` counts those that are finished."""
    shown = [name for name in COLUMNS if any(name in one for row in scores.values() for one in row.values())]
    lines = ["| | runs | " + " | ".join(f"{name}, {COLUMNS[name]}".rstrip(", ") for name in shown) + " |"]
    lines.append("|---|---|" + "---|" * len(shown))
    for row, by_seed in scores.items():
        cells = [
            spread(
                [one[name] for one in by_seed.values() if name in one],
                digits=2 if name == "loss" else 0 if COLUMNS[name] == "s" else 1,
            )
            for name in shown
        ]
        lines.append(f"| {row} | {len(by_seed)} of {seeds} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *about]) + "\n"


def write_all(out: Path, scores: Scores, seeds: int, about: Sequence[str]) -> str:
    """Write table.md, table.csv and plot.png; return the Markdown."""
    text = markdown(scores, seeds, about)
    write_atomically(out / "table.md", text)
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerow(["row", "seed", *COLUMNS])
    for row, by_seed in scores.items():
        writer.writerows([row, seed, *(one.get(name, "") for name in COLUMNS)] for seed, one in sorted(by_seed.items()))
    write_atomically(out / "table.csv", rows.getvalue())
    save(plot(scores), out / "plot.png")
    return text


def plot(scores: Mapping[str, Mapping[int, Mapping[str, float]]]) -> Image.Image:
    """Draw each row's runs as points and their mean as a line, a panel for each score."""
    left, high, top = 190, 22, 40
    rows = {name: runs for name, runs in scores.items() if any(set(SHARES) & set(one) for one in runs.values())}
    sheet = Image.new("RGB", (WIDTH, top + high * max(1, len(rows)) + 30), "white")
    pen = ImageDraw.Draw(sheet)
    wide = (WIDTH - left) // len(SHARES)
    for number, (row, runs) in enumerate(rows.items()):
        middle = top + number * high + high // 2
        write(pen, (8, middle - 7), row, width=left - 16)
        for panel, name in enumerate(SHARES):
            values = [one[name] for one in runs.values() if name in one]
            _points(pen, (left + panel * wide, middle, wide - 24), values, COLOURS[panel % len(COLOURS)])
    for panel, name in enumerate(SHARES):
        start = left + panel * wide
        write(pen, (start, 10), f"{name}, %")
        pen.line((start, top - 6, start, top + high * len(rows)), fill="#d0d7de")
        pen.line((start + wide - 24, top - 6, start + wide - 24, top + high * len(rows)), fill="#d0d7de")
        write(pen, (start, top + high * len(rows) + 4), "0", fill=GREY)
        write(pen, (start + wide - 44, top + high * len(rows) + 4), "100", fill=GREY)
    return sheet


def _points(pen: ImageDraw.ImageDraw, where: tuple[int, int, int], values: Sequence[float], color: str) -> None:
    left, middle, wide = where
    pen.line((left, middle, left + wide, middle), fill="#eaeef2")
    for value in values:
        x = left + value / 100 * wide
        pen.ellipse((x - 3, middle - 3, x + 3, middle + 3), outline=color)
    if values:
        x = left + statistics.fmean(values) / 100 * wide
        pen.line((x, middle - 8, x, middle + 8), fill=color, width=2)


def read_result(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the scores of an evaluation in percent: of the checkpoint (`trained`) and of random weights (`untrained`)."""
    found = {}
    for name, row in (("trained", "checkpoint"), ("untrained", UNTRAINED)):
        one = result["rows"][row]
        found[name] = {"kNN": 100 * one["knn_top1"], "R@1": 100 * one["recall_at_k"]["1"]}
        if one["linear"]:
            found[name]["linear"] = 100 * one["linear"]["accuracy"]
    return found
