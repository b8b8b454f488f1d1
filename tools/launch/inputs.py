"""Look at what a job will read, on the machine that submits it: lists, folders, checkpoints, and sizes that do not fit them.

A job that cannot run is refused before it waits in a queue. `check_files=false` is for machines that do not see the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from start.fit import Machine, refusals
from start.own_videos import count, fits, list_videos

from launch.command import SCHEMAS
from launch.options import Launch
from sce_video.command_line import composed_values, read_words
from sce_video.data.loader import BUILT_IN
from sce_video.errors import InputError, log

LISTS = ("data.train", "monitor.train", "monitor.val", "train", "test", "val", "data", "predict")


def check_inputs(words: Sequence[str], options: Launch, *, dry: bool) -> None:
    """Raise InputError for what the program cannot read or its sizes that do not fit; with `dry` warn instead.

    words: the program and its options.
    """
    stem = PurePath(words[0]).stem
    if stem not in SCHEMAS:
        return
    if not options.check_files:
        log.info("check_files=false: lists, checkpoints and sizes were not checked here")
        return
    found = find_problems(stem, words[1:], options)
    if not found:
        return
    if not dry:
        raise InputError(*found, "mend them, or give check_files=false if this machine does not see the files")
    for problem in found:
        log.warning(f"a submission would be refused: {problem}")


def find_problems(program: str, arguments: Sequence[str], options: Launch) -> list[str]:
    """Return a sentence for each problem."""
    schema = SCHEMAS[program]
    arguments = read_words(arguments, schema)
    values = composed_values(program, schema, arguments)
    splits = values.get("splits") or [""]
    problems, videos = [], []
    for name in LISTS:
        source = values.get(name)
        if not isinstance(source, str) or source in ("", "???", *BUILT_IN):
            continue
        root = values.get("monitor.root" if name.startswith("monitor.") else "data.root" if program == "pretrain" else "root")
        for split in splits if "%" in source else [""]:
            try:
                videos = list_videos(source.replace("%", str(split)), root, "none")
            except InputError as error:
                problems.append(f"{name}: {error}")
                continue
            if name in ("data.train", "train") and program in ("pretrain", "finetune") and not fits(program, arguments):
                machine = Machine("cuda" if options.gpus else "cpu", 1, processes=options.nodes * options.processes_per_node)
                number = count(videos, values) if program == "pretrain" else len(videos)
                problems += [f"{choice.why}; e.g. {choice.option}={choice.value}" for choice in refusals(values, number, machine)]
    return problems + _missing_checkpoint(values)


def _missing_checkpoint(values: dict[str, Any]) -> list[str]:
    path = values.get("checkpoint")
    if not isinstance(path, str) or path in ("", "???") or Path(path).exists():
        return []
    return [f"checkpoint {path!r} does not exist: give a run folder, a checkpoint folder or a weight file"]
