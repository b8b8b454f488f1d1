"""Values that fit the user's own videos and machine: pure rules, in the order of the table in docs/own_videos.md.

`fit` and `fit_labels` choose them where no recipe was named; `refusals` lists what does not fit in a recipe that was named, with
the values that would do. Sizes are powers of two. Nothing is read here: `own_videos.py` counts videos and looks at the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sce_video.config.shared import Optim, Precision, System, check_clip_precision, check_warmup
from sce_video.data.loader import check_batch, default_workers
from sce_video.errors import InputError
from sce_video.models.momentum import check_queue
from sce_video.training.setup import check_precision

STEPS = {"cpu": 300, "cuda": 10_000}  # of training, about
LABEL_STEPS = {"cpu": 200, "cuda": 5_000}  # of finetuning, about
MAX_EPOCHS = 200
STEPS_PER_EPOCH = 3  # at least
MAX_BATCH = 64  # videos: the recipes' own batch
WITH_QUEUE = ("sce", "moco", "ressl")  # methods that keep keys
MAX_QUEUE = {"cpu": 512, "cuda": 4096}  # keys: the recipes' own queues
SCORED_VIDEOS = 256  # for scores without labels
HELD_OUT = 0.2  # of each class's videos


@dataclass(frozen=True)
class Machine:
    """The machine of a run. cores: of one process; half: the best half precision of the GPU."""

    device: str  # cpu, cuda
    cores: int
    processes: int = 1
    half: str = "bf16"


class Choice(NamedTuple):
    """An option, the value that fits, and why."""

    option: str
    value: Any
    why: str


def power_of_two(value: float) -> int:
    """Return the largest power of two that is at most `value`, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)


def fit(num_videos: int, *, scored_by_label: bool, machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    """Return the recipe to begin with and the values to change in it.

    num_videos: to train on. scored_by_label: whether classes are known, so that held-out videos can be scored.
    given: options of the command line; they are kept, and the other values follow them.
    Raises InputError for fewer than two videos per process.
    """
    gpu, processes = machine.device == "cuda", machine.processes
    if num_videos < 2 * processes:
        raise InputError(
            f"data.train holds {num_videos} video(s) to train on, {2 * processes} are needed for {processes} process(es): "
            "add videos" + (", or start fewer processes" if processes > 1 else "")
        )
    chosen = Choices(given)
    choose = chosen.add
    choose("recipe", "sce_r3d18_ucf101" if gpu else "demo", "network and augmentation for " + ("a GPU" if gpu else "a CPU"))
    choose("name", "own", "of the run")
    if scored_by_label:
        choose("data.held_out", HELD_OUT, "every fifth video of a class is scored by its label and not trained on")
    else:
        choose("monitor.videos", min(SCORED_VIDEOS, num_videos), "without labels, two clips of a video are matched")
    batch = chosen.add_sizes(num_videos, machine, steps=STEPS[machine.device], max_batch=MAX_BATCH)
    if gpu and "optim.accumulate" not in given:
        choose("optim.fit", "auto", "as few parts of a batch as the memory counted for this network asks for")
    method = given.get("method", "sce")
    keys = (1 if given.get(f"{method}.symmetric") is False else given.get("augment.global_views", 2)) * batch
    queue = min(MAX_QUEUE[machine.device], power_of_two(2 * num_videos / 3))
    if method in WITH_QUEUE:
        choose(
            f"{method}.queue", max(keys, queue), f"a third of an epoch's keys, {keys} (one step's) to {MAX_QUEUE[machine.device]}"
        )
    choose("monitor.every_epochs", max(1, chosen.value("optim.epochs") // 5), "five scores in the run")
    return chosen.rows


def fit_labels(num_videos: int, *, small: bool, machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    """Return the recipe and the values for finetuning on so many labelled videos. small: the demo's network. See `fit`."""
    if num_videos < 2 * machine.processes:
        raise InputError(f"train holds {num_videos} video(s), {2 * machine.processes} are needed: add videos")
    chosen = Choices(given)
    chosen.add("recipe", "demo" if small else "ucf101", "for the demo's network" if small else "for any network but the demo's")
    chosen.add("name", "own", "of the run")
    chosen.add_sizes(num_videos, machine, steps=LABEL_STEPS[machine.device], max_batch=MAX_BATCH // 2 if small else MAX_BATCH)
    return chosen.rows


class Choices:
    """Chosen values in order; an option that is given keeps its value and has no row."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.rows: list[Choice] = []

    def add(self, option: str, value: Any, why: str) -> Any:
        """Choose a value unless one is given; return the one that counts."""
        if option not in self.given:
            self.rows.append(Choice(option, value, why))
        return self.given.get(option, value)

    def value(self, option: str) -> Any:
        """Return the value that counts of an option."""
        return self.given[option] if option in self.given else next(row.value for row in self.rows if row.option == option)

    def add_sizes(self, num_videos: int, machine: Machine, *, steps: int, max_batch: int) -> int:
        """Choose what length and size of training ask for, in about so many steps; return the batch."""
        gpu, processes = machine.device == "cuda", machine.processes
        self.add("data.max_bad_fraction", 0.1, "a few unreadable videos are reported and replaced")
        share = min(max_batch // processes or 1, num_videos // (STEPS_PER_EPOCH * processes))
        why = f"up to a third of {num_videos} videos and {max_batch}"
        batch = int(self.add("optim.batch", processes * max(2, power_of_two(share)), why))
        own = max(1, num_videos // max(1, batch))
        why = f"about {steps} steps, {own} an epoch, 1 to {MAX_EPOCHS} epochs"
        epochs = self.add("optim.epochs", max(1, min(MAX_EPOCHS, round(steps / own))), why)
        self.add("optim.warmup_epochs", epochs / 10, "a tenth of the epochs")
        self.add("optim.precision", machine.half if gpu else "fp32", "of this GPU" if gpu else "a CPU computes in no other")
        self.add("system.workers", default_workers(machine.cores, machine.device), f"decode, of {machine.cores} core(s)")
        return batch


def refusals(values: Mapping[str, Any], num_videos: int, machine: Machine) -> list[Choice]:
    """Return every option of a composed recipe that does not fit, with a value that would do; `why` is the rule's own sentence.

    values: all options by dotted name. Options that are missing or of a wrong type are left to the schema's own checks.
    """
    names = ("optim.batch", "optim.accumulate", "optim.epochs", "optim.warmup_epochs")
    method = values.get("method", "sce")
    numbers = [*(values.get(name) for name in names), values.get(f"{method}.queue", math.inf)]  # finetuning has no queue
    if not all(isinstance(number, (int, float)) and number >= 0 for number in numbers):
        return []
    batch, accumulate, epochs, warmup, queue = (number or 0 for number in numbers)
    found: list[Choice] = []

    def look(option: str, value: Any, rule: Callable[..., None], *arguments: Any) -> bool:
        try:
            rule(*arguments)
        except InputError as error:
            found.append(Choice(option, value, str(error)))
        return bool(found) and found[-1].option == option

    precision = str(values.get("optim.precision"))
    if precision in Precision.__members__ and look(
        "optim.precision", "fp32", check_precision, Precision[precision], torch.device(machine.device)
    ):
        clips = System(bf16_clips=bool(values.get("system.bf16_clips")))
        look("system.bf16_clips", "false", check_clip_precision, clips, Optim(precision=Precision.fp32))
    step = machine.processes * max(1, int(accumulate))
    if max(2, step) <= num_videos:  # else none fits, which the loader refuses
        value = power_of_two(num_videos / step) * step if batch > num_videos else max(2, int(batch) // step * step, step)
        arguments = (num_videos, int(batch), max(1, int(accumulate)), machine.processes)
        batch = value if look("optim.batch", value, check_batch, *arguments) else batch
    views = 1 if values.get(f"{method}.symmetric") is False else values.get("augment.global_views", 2)
    look(f"{method}.queue", 1 << math.ceil(math.log2(max(1, views * batch))), check_queue, queue, int(batch), views, method)
    look("optim.warmup_epochs", epochs / 10, check_warmup, warmup, epochs)
    return found
