"""Complete the command of a run on the user's own videos, before its options are composed.

Where no recipe is named, the rules of `fit.py` choose one and the values to change in it; a run that has begun goes
on with its own values instead. Where a recipe is named, nothing is changed: everything in it that does not fit is refused at
once, with a command that does. The list of videos and the machine are looked at, no video is opened.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sce_video import distributed
from sce_video.command_line import compose_options, composed_values, given_values, option_names, override, with_method
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.data import health, loader, long_videos, manifest, mixture
from sce_video.data.manifest import Video
from sce_video.errors import InputError, log
from sce_video.models.named import is_named
from sce_video.runs.folder import stored_options
from start.fit import HELD_OUT, Choice, Machine, fit, fit_labels, refusals

# Where a run without `out=` and `recipe=` may have begun.
FOLDERS, FINETUNED = ("runs/own", "runs/demo"), ("runs/finetune_own", "runs/finetune_demo")
TESTING = ("testing.clips_per_video", "testing.num_crops", "testing.size")
SHOWS = frozenset(("-c", "--cfg"))  # the options, whether they fit or not
ASKS_ONLY = frozenset(("-h", "--help", "--hydra-help", "--version", "--info", "-i"))
SWEEPS = frozenset(("-m", "--multirun"))  # a run for each value; each in a folder of its own
MIN_QUERIES = 5  # held-out videos below which a score by label says nothing


def complete(arguments: list[str]) -> list[str]:
    """Return the command line of tools/pretrain.py with the values that fit added; log them.

    Raises InputError with every option that does not fit, and one command that does.
    """
    given = given_values(arguments)
    source = str(given.get("data.train", ""))
    if "extend" in given and "recipe" not in given and not SHOWS & set(arguments):
        return [*extended(given), *arguments]
    if ASKS_ONLY & set(arguments) or source in ("", *loader.BUILT_IN):
        return arguments
    added: list[str] = []
    fitted = "recipe" not in given
    machine = look_at_machine(given, precision=fitted)
    sweep = bool(SWEEPS & set(arguments))
    began = begun("data.train", given, FOLDERS, PretrainConfig) if fitted and not sweep else []
    if began:
        return [*began, *arguments]
    videos = list_videos(source, given.get("data.root"), given.get("data.health", "auto"))
    if fitted:
        by_label = has_classes(videos) and "monitor.train" not in given
        choices = fit(count(videos, given), scored_by_label=by_label, machine=machine, given=given)
        added = [override(choice.option, choice.value) for choice in choices]
        if "monitor.train" not in given:
            added += ["monitor.train=''", "monitor.val=''"]  # the demo's
        report(choices, f"{source}: {len(videos)} videos; values that fit them and this machine:")
    if sweep:
        return [*added, *numbered(given, "runs/own" if fitted else ""), *arguments]
    if "preview" not in given and not SHOWS & set(arguments):
        values = composed_values("pretrain", PretrainConfig, [*added, *arguments])
        refuse(refusals(values, count(videos, values), machine), added, arguments, "pretrain", PretrainConfig)
    return [*added, *arguments]  # before the flags


def complete_finetuning(arguments: list[str]) -> list[str]:
    """Return the command line of tools/finetune.py with the values that fit added, as `complete` does.

    `predict=` needs no lists, and tests as the run of the classifier did.
    """
    given = given_values(arguments)
    source = str(given.get("train", ""))
    stored = stored_options(folder := Path(str(given.get("checkpoint", "")))) or stored_options(folder.parent)  # RUN/best
    if given.get("predict"):
        known = {name: stored[name] for name in TESTING if name in stored}
        return [
            *(override(key, value) for key, value in ({"train": "", "test": ""} | known).items() if key not in given),
            *arguments,
        ]
    if ASKS_ONLY & set(arguments) or source in ("", *loader.BUILT_IN):
        return arguments
    splits = given.get("splits")
    if "%" in source and not (isinstance(splits, list) and splits):
        return arguments  # which the schema refuses
    added: list[str] = []
    fitted = "recipe" not in given
    machine = look_at_machine(given, precision=fitted)
    sweep = bool(SWEEPS & set(arguments))
    began = begun("train", given, FINETUNED, FinetuneConfig) if fitted and not sweep else []
    if began:
        return [*began, *arguments]
    videos = list_videos(
        source.replace("%", str(splits[0])) if splits else source, given.get("root"), given.get("data.health", "auto")
    )
    if fitted:
        small = str(given.get("backbone") or stored.get("model.backbone") or "tiny3d") == "tiny3d"
        choices = fit_labels(len(videos), small=small, machine=machine, given=given)
        added = [override(choice.option, choice.value) for choice in choices]
        report(choices, f"{source}: {len(videos)} videos; values that fit them and this machine:")
    if sweep:
        return [*added, *numbered(given, "runs/finetune_own" if fitted else ""), *arguments]
    values = composed_values("finetune", FinetuneConfig, [*added, *arguments])
    refuse(refusals(values, len(videos), machine), added, arguments, "finetune", FinetuneConfig)
    return [*added, *arguments]


def numbered(given: Mapping[str, Any], folder: str) -> list[str]:
    """Return `out=` of a sweep's runs, folder_0, folder_1 and so on, unless it is given."""
    return [f"out='{folder}_${{hydra:job.num}}'"] if folder and "out" not in given else []


def fits(program: str, arguments: Sequence[str]) -> bool:
    """Whether the program will choose values itself: no recipe is named, and the videos are the user's own."""
    given = given_values(arguments)
    source = given.get({"pretrain": "data.train", "finetune": "train"}.get(program, ""), "")
    return "recipe" not in given and str(source) not in ("", *loader.BUILT_IN)


def list_videos(source: str, root: Any, known_health: Any) -> list[Video]:
    """Return the videos to train on without those that the doctor found broken. Raises InputError as `manifest.read`."""
    if len(sources := mixture.parse(source)) > 1:
        return [video for name, _ in sources for video in list_videos(name, root, known_health)]
    (source, _), *_ = sources
    if source == "synthetic" or (is_named(source) and not Path(source).exists()):  # a data set of one's own
        return loader.read_videos(source, split="train")
    videos = manifest.read(source, str(root) if root else None)
    table = health.find(source, str(known_health))
    return videos if table is None else health.drop_bad(health.add_health(videos, table))


def count(videos: Sequence[Video], given: Mapping[str, Any]) -> int:
    """Return how many videos are trained on."""
    share = given.get("data.held_out", HELD_OUT if has_classes(videos) else 0)
    valid = isinstance(share, (int, float)) and 0 <= share <= 0.5
    kept = manifest.hold_out(videos, share)[0] if valid else videos
    length = given.get("data.seconds_per_row", 0)
    if isinstance(length, (int, float)) and length > 0:
        kept = long_videos.divide(kept, length, decoder=str(given.get("data.decoder", "auto")))
    return len(kept)


def has_classes(videos: Sequence[Video]) -> bool:
    """Whether every video has a label and enough of them can be held out to be scored."""
    held = manifest.hold_out(videos, HELD_OUT)[1]
    return all(video.label is not None for video in videos) and len(held) >= MIN_QUERIES and len({v.label for v in held}) > 1


def look_at_machine(given: Mapping[str, Any], *, precision: bool) -> Machine:
    """Return the machine as this process may use it, by the options given. precision: whether to ask the GPU for its best."""
    device, shared = str(given.get("system.device", "auto")), given.get("system.backend") == "gloo"
    cuda = device != "cpu" and torch.cuda.is_available()
    about = torch.cuda.get_device_properties(distributed.gpu_of_this_rank(shared=shared)) if cuda and precision else None
    return Machine(
        device="cuda" if cuda else "cpu",
        cores=loader.own_cores(),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        half="bf16" if about is None or about.major >= 8 else "fp16",
    )


def begun(key: str, given: Mapping[str, Any], folders: Sequence[str], schema: type) -> list[str]:
    """Return the options of the run that a command without `recipe=` continues, less those given; empty if there is none."""
    out = str(given.get("out", ""))
    for folder in [out] if out else folders:
        stored = stored_options(Path(folder))
        if stored and (out or stored.get(key) == str(given.get(key, "synthetic"))):
            if first_process():
                log.info(f"{folder}: the run goes on with the values that it began with ({folder}/config.yaml)")
            own: type = with_method(schema, [f"method={given.get('method', stored.get('method', 'sce'))}"])
            known = option_names(own)  # not those of another version
            kept = {name: value for name, value in stored.items() if name in known and not name.startswith("system.")}
            kept = {"recipe": "demo", **kept, "out": folder}
            return [override(name, value) for name, value in kept.items() if name not in given]
    return []


def extended(given: Mapping[str, Any]) -> list[str]:
    """Return the options of the finished run that `extend=` trains on, less those given. Raises InputError without a run."""
    options = begun("data.train", given, FOLDERS, PretrainConfig)
    if not options:
        raise InputError(f"extend={given['extend']} trains a finished run on: name its folder, out=RUN")
    return options


def first_process() -> bool:
    """Whether this process is the one that speaks for all, before they have met."""
    return os.environ.get("RANK", "0") == "0"


def report(choices: Sequence[Choice], title: str) -> None:
    """Log the chosen values in one block."""
    if not first_process():
        return
    names = [f"{choice.option}={choice.value}" for choice in choices]
    width = max(map(len, names), default=0)
    rows = [f"  {name:<{width}}  {choice.why}" for name, choice in zip(names, choices, strict=True)]
    for row in [title, *rows, "  (say an option yourself to override it; docs/own_videos.md has the rules)"]:
        log.info(row)


def refuse(choices: Sequence[Choice], added: Sequence[str], arguments: Sequence[str], program: str, schema: type) -> None:
    """Raise InputError with all refusals and the command that would do, if there are any. added: the values that were fitted."""
    if not choices:
        return
    new = [f"{choice.option}={choice.value}" for choice in choices]
    given, keys = given_values(arguments), {choice.option for choice in choices}
    kept = [f"{key}={given.get(key, value)}" if sign else key for key, sign, value in (word.partition("=") for word in arguments)]
    kept = [word for word in kept if word.partition("=")[0] not in keys]
    start = ["python", sys.argv[0]]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        start = ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), sys.argv[0]]
    parts = [choice.why for choice in choices]
    command = f"this fits: {shlex.join([*start, *kept, *new])}"
    try:
        compose_options(program, schema, [*added, *kept, *new])
    except InputError as error:  # what else is wrong with it, at once too
        parts.append(str(error))
        command = command.replace("this fits:", "that apart, this fits:")
    if len(parts) == 1:
        raise InputError(f"{parts[0]}; {command}")
    raise InputError(*parts, command)
