"""Options of `tools/launch.py`, one class per target: `key=value` words before `--`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sce_video.command_line import given_options
from sce_video.errors import InputError, require

_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
_NAME = re.compile(r"[\w.,@:+-]*")

S = TypeVar("S")


@dataclass
class Launch:
    """Options of every target."""

    nodes: int = 1  # machines
    gpus: int = 8  # per machine
    processes: int = 0  # per machine; 0: one per GPU
    port: int = 29500  # of the rendezvous on the first machine
    max_restarts: int = 20  # after failures; a preemption does not count
    stop_seconds: int = 240  # time to save for a run that was asked to stop
    python: str = ""  # the Python that runs there; empty: this one, in a container `python`
    check_files: bool = True  # look at lists and checkpoints before submitting; false: this machine does not see them
    dry_run: bool = False  # print the script and start nothing
    setup: str = ""  # shell file to source first (`module load`, `source .venv/bin/activate`)

    def __post_init__(self) -> None:
        for name in ("nodes", "stop_seconds"):
            require(getattr(self, name), name, lambda value: value >= 1, "at least 1")
        for name in ("gpus", "processes", "max_restarts"):
            require(getattr(self, name), name, lambda value: value >= 0, "at least 0")
        require(self.port, "port", lambda value: value == 0 or 1024 <= value <= 65535, "0 or in 1024..65535")
        for name, value in vars(self).items():
            if isinstance(value, str) and not value.isprintable():
                raise InputError(f"{name} ({value!r}) must be one line without control characters")
        if not self.gpus and not self.processes:
            raise InputError("without GPUs (gpus=0) give processes=, the number per machine")
        if 0 < self.gpus < self.processes:
            raise InputError(f"processes ({self.processes}) must be at most gpus ({self.gpus}): one process drives one GPU")

    @property
    def processes_per_node(self) -> int:
        """Processes that torchrun starts on each machine."""
        return self.processes or self.gpus


@dataclass
class Slurm(Launch):
    """tools/launch.py slurm"""

    port: int = 0  # 0: from the job's number
    time: str = "24:00:00"  # time limit of one start in sbatch's format; the next start continues the run
    notice_seconds: int = 300  # seconds before the limit at which the run is asked to stop and save
    partition: str = ""
    account: str = ""
    qos: str = ""
    cpus: int = 0  # cores per machine; 0: for system.workers= if that is given, else the cluster's default
    gpu_type: str = ""  # as in gpus=a100:4
    container: str = ""  # image for pyxis (srun --container-image)
    mounts: str = ""  # for pyxis: host folders to mount in the container
    extra: str = ""  # more options of sbatch, e.g. extra='--exclusive --mem=0'
    logs: str = ""  # folder of the script and the job's output; empty: <run folder>-launch

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.time, "time", lambda value: bool(_TIME.fullmatch(value)), "as in 30, 24:00:00 or 2-12")
        for name in ("partition", "account", "qos", "gpu_type"):
            require(getattr(self, name), name, lambda value: bool(_NAME.fullmatch(value)), "a name without spaces")
        require(self.cpus, "cpus", lambda value: value >= 0, "at least 0")
        if self.stop_seconds >= self.notice_seconds:
            raise InputError(
                f"stop_seconds ({self.stop_seconds}) must be below notice_seconds ({self.notice_seconds}), after which "
                "SLURM kills the job"
            )
        if self.mounts and not self.container:
            raise InputError("mounts= is for container=: give the image too")


@dataclass
class Local(Launch):
    """tools/launch.py local"""

    gpus: int = field(default_factory=lambda: _visible_gpus())
    processes: int = 0  # 0: one per GPU, or one without GPUs
    node: int = 0  # index of this machine, from 0
    head: str = ""  # name or address of machine 0, if there are several
    pause_seconds: int = 5  # before starting again

    def __post_init__(self) -> None:
        if not self.gpus:
            self.processes = self.processes or 1
        super().__post_init__()
        if not 0 <= self.node < self.nodes:
            raise InputError(f"node ({self.node}) must be in 0..nodes - 1 ({self.nodes - 1})")
        if self.nodes > 1 and not self.head:
            raise InputError("with several machines give head=, the name or address of machine 0, the same on all")


PLACES: dict[str, type[Launch]] = {"slurm": Slurm, "local": Local}


def read_options(words: Sequence[str], schema: type[S]) -> S:
    """Parse `key=value` words. Raises InputError for an unknown option, a wrong type or an invalid value."""
    values: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise InputError(f"cannot read {word!r}: write key=value, and the program to run after --")
        if key in values:
            raise InputError(f"option {key} is given twice")
        if key == "gpus" and ":" in value and issubclass(schema, Slurm):  # gpus=a100:4
            values["gpu_type"], _, value = value.partition(":")
        values[key] = value
    return given_options(values, schema)


def python_of(options: Launch) -> str:
    """Return the Python that runs the program."""
    contained = isinstance(options, Slurm) and bool(options.container)
    return options.python or ("python" if contained else sys.executable)


def _visible_gpus() -> int:
    import torch  # imported late: only `local` needs it

    return torch.cuda.device_count()


def log_folder(options: Slurm, run: str) -> str:
    """Return the folder of a SLURM job's script and output."""
    return os.path.abspath(options.logs or (f"{run}-launch" if run else "runs/launch"))
