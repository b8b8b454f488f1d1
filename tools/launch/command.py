"""Check the launched program and its options before it waits in a queue, and find its run folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

from start.own_videos import extended, fits

from sce_video.command_line import compose_options, given_values, read_words
from sce_video.config.evaluate import EvaluateConfig, FeaturesConfig, RetrievalConfig
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError

TRAINING: dict[str, Any] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}  # programs with a run folder
OTHERS: dict[str, Any] = {"evaluate": EvaluateConfig, "retrieval": RetrievalConfig, "features": FeaturesConfig}

SCHEMAS = TRAINING | OTHERS


class Command(NamedTuple):
    """Command line for torchrun, the run folder (empty: none), and a name for the job."""

    words: list[str]
    run: str
    name: str


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after `--`. Raises InputError if no program follows it."""
    words = list(arguments)
    index = words.index("--") if "--" in words else len(words)
    if not words[index + 1 :]:
        raise InputError("no program: write it and its options after --, e.g. -- tools/pretrain.py recipe=... out=...")
    return words[:index], words[index + 1 :]


def read_command(command: Sequence[str]) -> Command:
    """Check a program and its options, and set the run folder of all restarts.

    Your own program (any other .py file) must name its run folder with `out=`, so that it can be restarted.

    Raises InputError for a missing program or options that it refuses.
    """
    program, options = command[0], list(command[1:])
    if any(not word.isprintable() for word in command):
        raise InputError("the program and its options must be without control characters and new lines")
    if not program.endswith(".py") or not os.path.isfile(program):
        raise InputError(f"{program!r} is no program here: write the path of a .py file after --")
    stem = PurePath(program).stem
    if stem == "launch" and options[:1] == ["check"]:
        return Command([program, *options], "", "check")
    folder = _out(options)
    if stem in TRAINING:
        given = given_values(words := read_words(options, TRAINING[stem]))
        named = ["name=own"] if fits(stem, words) else []  # as the program itself will
        named = extended(given) if "extend" in given and "recipe" not in given else named
        folder = str(compose_options(stem, TRAINING[stem], [*named, *options]).run_folder)
    elif stem in OTHERS:
        compose_options(stem, OTHERS[stem], options)
        return Command([program, *options], "", stem)
    if not folder:
        raise InputError(f"{program} is not one of ours: give its run folder, out=")
    folder = os.path.abspath(folder)
    kept = [word for word in options if not word.startswith("out=")]
    out = folder.removesuffix(f"_extended_{given['extend']}") if stem in TRAINING and "extend" in given else folder
    return Command([program, *kept, f"out={_for_hydra(out)}"], folder, PurePath(folder).name)


def _out(options: Sequence[str]) -> str:
    return next((word.removeprefix("out=") for word in reversed(options) if word.startswith("out=")), "")


def _for_hydra(value: str) -> str:
    """Quote a value for Hydra's override grammar if necessary."""
    if all(letter.isalnum() or letter in "/-_.+@%" for letter in value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
