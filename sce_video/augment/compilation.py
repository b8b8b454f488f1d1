"""Building the passes of `fused` before they are needed: whether it pays, whether it is possible, and doing it.

It needs a C++ compiler (CPU) or Triton (GPU), and a minute or two the first time. On a CPU other processes build them
(this file as a program), see `built`; on a GPU torch.compile does, in this process, with its own cache on disk.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import distributed
from . import built, fused
from .draws import Parameters, draw
from .view import View

PAYS_FROM = (
    2e10  # pixels: 50,000 clips of 8 x 224 x 224, of which an hour is saved on one core for a minute of building
)
BUILDERS = 4  # processes at most, a gigabyte each
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def pays(device: torch.device, pixels: float) -> bool:
    """Whether to compile for this many pixels in all (clips x frames x height x width, of one process): on a GPU always."""
    return device.type != "cpu" or pixels >= PAYS_FROM


@dataclass(frozen=True)
class Needs:
    """What decides which passes are needed, see `pipeline.apply`; plain values, for it is told to another process."""

    views: list[View]
    num_frames: int
    size: int
    mean: float
    std: float
    antialias: bool
    dtype: str
    channels_last: bool

    def walk(self, passes: fused.Passes, device: torch.device) -> None:
        """Lead clips through every pass with `passes`; what they compute is not used."""
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        for view in self.views:
            clips, drawn = _samples(view, self.num_frames, self.size, device)
            shape = (len(clips), 3, self.num_frames, self.size, self.size)
            out = torch.empty(shape, dtype=getattr(torch, self.dtype), device=device, memory_format=layout)
            settings = fused.Settings(view, self.mean, self.std, self.antialias, passes, device.type != "cpu")
            fused.apply_compiled(clips, drawn, out, [False] * len(clips), settings)

    def calls(self) -> dict[str, tuple[Callable[..., None], tuple[Any, ...]]]:
        """Return the passes on a CPU with the arguments they are called with, by `built.described`; nothing is computed."""
        found: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {}

        def note(function: Callable[..., None], together: bool) -> Callable[..., None]:
            return lambda *arguments: found.update({built.described(function, arguments): (function, arguments)})

        self.walk(note, torch.device("cpu"))
        return found


def prepare(
    views: Sequence[View],
    *,
    num_frames: int,
    size: int,
    mean: float,
    std: float,
    device: torch.device,
    folder: Path,
    antialias: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> str:
    """Build every pass that these views can need, and return "", or why it could not be done, in one line.

    folder: where passes for a CPU are kept. It may be shared, and deleted at any time.
    """
    name = str(dtype).removeprefix("torch.")
    needs = Needs(list(views), num_frames, size, mean, std, antialias, name, channels_last)
    if device.type == "cpu":
        return _prepare_on_cpu(needs, folder)
    from torch._dynamo.exc import TorchDynamoException

    try:
        needs.walk(fused.compiled, device)
    except TorchDynamoException as error:
        return str(error).strip().splitlines()[0]
    return ""


def _prepare_on_cpu(needs: Needs, folder: Path) -> str:
    places = {call: built.place(folder, call, torch.get_num_threads()) for call in needs.calls()}
    missing = sum(not path.exists() for path in places.values())
    if missing and (reason := _build_elsewhere(needs, folder, missing)):
        return reason
    for call, path in places.items():
        try:
            built.load(call, path)
        except RuntimeError as error:
            return f"cannot load {path}: {str(error).strip().splitlines()[0]}"
    return ""


def _build_elsewhere(needs: Needs, folder: Path, missing: int) -> str:
    """Have processes build what is missing, each its share, and return "" or the reason why one of them failed."""
    count = min(missing, BUILDERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if distributed.rank() == 0:
        print(f"building {missing} passes of the augmentation in {folder} (once, a minute or two)", file=sys.stderr)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")])}
    told = {**asdict(needs), "folder": str(folder), "threads": torch.get_num_threads(), "count": count}
    builders = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps({**told, "share": share})],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for share in range(count)
    ]
    outputs = [builder.communicate()[1] for builder in builders]
    for builder, output in zip(builders, outputs, strict=True):
        if builder.returncode:
            return _reason(output) or f"the process that builds them ended with {builder.returncode}"
    return ""


def _reason(output: str) -> str:
    """Return the line of a traceback that says what is wrong: the first after the last list of calls."""
    lines = output.rpartition("Traceback (most recent call last):")[2].splitlines()
    return next((line for line in lines if line and not line.startswith(" ")), "")


def _build_share(told: dict[str, Any]) -> None:
    """Build every `count`-th pass that `_build_elsewhere` asks for, if it is not there."""
    folder, threads, count, share = (
        Path(told.pop("folder")),
        *(told.pop(name) for name in ("threads", "count", "share")),
    )
    torch.set_num_threads(threads)  # their number is part of the machine code
    needs = Needs(**{**told, "views": [View(**view) for view in told["views"]]})
    folder.mkdir(parents=True, exist_ok=True)
    for call, (function, arguments) in list(needs.calls().items())[share::count]:
        path = built.place(folder, call, threads)
        lock = path.with_suffix(".lock")  # several programs may want the same
        with open(lock, "w") as handle:
            with suppress(OSError):  # a file system without locks: both build it, and either is kept
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not path.exists():
                built.build(function, arguments, path)
        lock.unlink(missing_ok=True)  # who still waits for it finds the pass


def _samples(view: View, num_frames: int, size: int, device: torch.device) -> tuple[list[torch.Tensor], Parameters]:
    """Clips and parameters that lead through every pass: each order of hue and contrast, each radius of the blur, none."""
    orders = [[3, 1, 0, 2], [0, 1, 2, 3]]
    sigmas = [0.0, *(radius / 5 for radius in fused.RADII), view.blur_sigma_max]
    cases = [(order, sigma) for sigma in sigmas for order in orders]
    drawn = draw(view, [torch.Generator().manual_seed(0)] * len(cases))
    drawn = replace(
        drawn,
        order=torch.tensor([order for order, _ in cases]),
        sigma=torch.tensor([min(max(sigma, 0.1), view.blur_sigma_max) for _, sigma in cases], dtype=torch.float64),
        jitter=torch.full((len(cases),), view.jitter_probability > 0),
        blur=torch.tensor([sigma > 0 and view.blur_probability > 0 for _, sigma in cases]),
        operations=drawn.operations[:, :0],  # never compiled
        magnitudes=drawn.magnitudes[:, :0],
    )
    # Sides that are nothing else's: what is equal once would be taken for equal always.
    sides = [(size + 5 + i, size + 17 + 2 * i) for i in range(len(cases))]
    return [torch.zeros(num_frames, *side, 3, dtype=torch.uint8, device=device) for side in sides], drawn


if __name__ == "__main__":
    _build_share(json.loads(sys.argv[1]))
