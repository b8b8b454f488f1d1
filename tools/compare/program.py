"""`tools/compare.py`: pretrain, evaluate and write down, run after run; or submit the runs."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import program as launch

from compare.plan import Cell, Compare, compose_evaluation, read_plan
from compare.table import RESULT, collect, read_result, write_all
from sce_video.command_line import errors_as_exit_codes
from sce_video.errors import InputError, Stopped, log
from sce_video.programs.evaluate import evaluate
from sce_video.programs.pretrain import pretrain
from sce_video.runs.files import to_json, write_atomically

SECONDS = "compare_seconds.json"  # beside a run's checkpoints: what its starts took so far


def main(arguments: list[str], text: str | None) -> None:
    """Run a comparison from its command line."""
    with errors_as_exit_codes():
        if {"-h", "--help"} & set(arguments):
            print(text)
            return
        compare(arguments)


def compare(arguments: Sequence[str]) -> str:
    """Run or continue a comparison and return its table. Raises Stopped at the end where a run cannot be finished."""
    options, cells, evaluation = read_plan(arguments)
    if options.slurm:
        return submit(options, cells)
    failed: list[str] = []
    out = Path(options.out)
    for number, cell in enumerate(cells if not options.table else (), start=1):
        if not (cell.folder / RESULT).is_file():
            log.info(f"comparison: run {number} of {len(cells)}: {cell.row}, seed {cell.seed}")
            try:
                run(cell, options, evaluation)
            except Stopped as error:  # the others can still be compared
                failed.append(f"{cell.row}, seed {cell.seed}, ended early: {error}")
                log.warning(failed[-1])
        write_all(out, collect(cells), options.seeds, about(arguments, failed))
    out.mkdir(parents=True, exist_ok=True)
    table = write_all(out, collect(cells), options.seeds, about(arguments, failed))
    print(table)
    print(f"written: {out / 'table.md'}, table.csv, plot.png")
    if failed:
        raise Stopped(f"{len(failed)} of {len(cells)} runs ended early: see {out / 'table.md'}")
    return table


def run(cell: Cell, options: Compare, evaluation: dict[str, str]) -> None:
    """Pretrain, or continue, and evaluate one run. Raises Preempted when it is asked to stop."""
    spent = Path(cell.folder / SECONDS)
    if not cell.finished:
        before = json.loads(spent.read_text()) if spent.is_file() else {"wall": 0.0, "CPU": 0.0}
        began, cpu = time.monotonic(), _cpu_seconds()
        try:
            pretrain(cell.options)
        finally:
            if cell.folder.is_dir():
                after = {"wall": before["wall"] + time.monotonic() - began, "CPU": before["CPU"] + _cpu_seconds() - cpu}
                write_atomically(spent, to_json(after))
    steps = [json.loads(line) for line in (cell.folder / "log.jsonl").read_text().splitlines()]
    trained = {"loss": next(one["train/loss"] for one in reversed(steps) if "train/loss" in one)}
    trained |= json.loads(spent.read_text()) if spent.is_file() else {}
    result: dict[str, Any] = {"trained": trained}
    if options.train:
        path = cell.folder / "evaluate.json"
        path.unlink(missing_ok=True)
        found = evaluate(compose_evaluation(options, {"seed": str(cell.seed), **evaluation}, cell.folder, path))
        scores = read_result(found)
        result = {"trained": {**scores["trained"], **trained}, "untrained": scores["untrained"]}
    write_atomically(cell.folder / RESULT, to_json(result))


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended, the decoding workers."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def about(arguments: Sequence[str], failed: Sequence[str]) -> list[str]:
    """Return the notes under the table: the command, the date, and runs without an end."""
    kept = [word for word in arguments if not word.startswith("table=")]
    command = f"`python tools/compare.py {shlex.join(kept)}`, {datetime.date.today()}, {os.cpu_count()} cores."
    return [f"Mean ± deviation over the runs. {command}", *failed]


def submit(options: Compare, cells: Sequence[Cell]) -> str:
    """Submit every run that is not finished by tools/launch.py; the command without slurm= then evaluates them."""
    waiting = [cell for cell in cells if not cell.finished]
    program = str(Path(__file__).parents[1] / "pretrain.py")
    for cell in waiting:
        launch.main(["slurm", *shlex.split(options.slurm), "--", program, *cell.words], "")
    log.info(
        f"{len(waiting)} of {len(cells)} runs submitted; the same command without slurm= evaluates them when they have ended"
    )
    return ""


def sweep(arguments: Sequence[str]) -> None:
    """Run `tools/pretrain.py -m`: every option with several values makes runs in a folder each, and a table of them."""
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    with errors_as_exit_codes():
        if flags := [word for word in words if word.startswith("-")]:
            raise InputError(f"-m cannot be combined with {flags[0]}: give options only")
        compare(words if any(word.startswith("out=") for word in words) else [*words, "out=runs/sweep"])
