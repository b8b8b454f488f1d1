"""The passes of `stages` on a CPU, built ahead of time by a process of its own, kept on disk and loaded as machine code.

torch.compile in the process itself would hold some 300 MB for good (the compiler's modules, traces, guards) and trace for
seconds at every start. So another process exports and builds each pass once (`build`, with torch.export and AOTInductor), and
this one only loads what came of it (`load`): some MB, no compiler.

A pass is known by how it is called: types, sizes and strides of its tensors, except for the height and width of a crop,
which may be anything above 1. A call that nothing was built for is computed as `stages` has it, to the same result.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import color, stages

# By pass: of which tensors (their place among the arguments) which side may vary.
FREE = {"columns": {(0, 1): "height", (0, 2): "width", (4, 1): "height"}, "rows": {(0, 1): "height"}}
OPTIONS: dict[str, Any] = {
    # Multiply and add may become one instruction: up to a sixth faster on a CPU, and if anything more exact.
    "cpp.enable_floating_point_contract_flag": "fast"
}
_loaded: dict[str, Callable[[list[Tensor]], Any]] = {}  # by `described`


def described(function: Callable[..., None], arguments: Sequence[Any]) -> str:
    """Return what tells this call of a pass from those that need other machine code."""
    free = FREE.get(function.__name__, {})
    words = [function.__name__]
    for number, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            sides = ["n" if (number, axis) in free and side > 1 else side for axis, side in enumerate(argument.shape)]
            strides = "" if argument.is_contiguous() else argument.stride()
            words.append(f"{argument.dtype} {sides} {strides}")
        else:
            words.append(str(argument))
    return "; ".join(words)


def passes(function: Callable[..., None]) -> Callable[..., None]:
    """The pass in machine code where `load` found some for how it is called, else as it is written."""

    def run(*arguments: Any) -> None:
        model = _loaded.get(described(function, arguments))
        if model is None:
            function(*arguments)
        else:
            model([argument for argument in arguments if isinstance(argument, Tensor)])

    return run


def place(folder: Path, described_call: str, threads: int) -> Path:
    """Return the file for a call's machine code: it is of this torch, this kind of CPU, these threads, this source."""
    sources = [Path(str(module.__file__)).read_text() for module in (stages, color)]
    key = [described_call, torch.__version__, _cpu(), str(threads), str(OPTIONS), *sources]
    return folder / f"{described_call.split(';')[0]}_{hashlib.sha256(chr(0).join(key).encode()).hexdigest()[:20]}.pt2"


def load(described_call: str, path: Path) -> None:
    """Have calls that are `described` so computed by the machine code in `path`; RuntimeError if torch cannot load it."""
    if described_call not in _loaded:
        try:
            # What torch._inductor.aoti_load_package does; that one imports the compiler first, which takes 165 MB.
            _loaded[described_call] = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1).boxed_run
        except (AttributeError, TypeError):  # another torch has it elsewhere
            from torch._inductor import aoti_load_package

            package = aoti_load_package(str(path))
            _loaded[described_call] = lambda tensors: package(*tensors)


def build(function: Callable[..., None], arguments: Sequence[Any], path: Path) -> None:
    """Export and build a pass for calls like this one; whole or not there. Imports torch's compiler."""
    import torch._inductor

    free = FREE.get(function.__name__, {})
    sides = {name: torch.export.Dim(name, min=2) for name in sorted(set(free.values()))}
    tensors = [(number, argument) for number, argument in enumerate(arguments) if isinstance(argument, Tensor)]
    shapes = tuple(
        {axis: sides[name] for (place, axis), name in free.items() if place == number} or None for number, _ in tensors
    )
    program = torch.export.export(
        _Pass(function, arguments), tuple(tensor for _, tensor in tensors), dynamic_shapes=(shapes,)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.stem}.{os.getpid()}.pt2")  # the suffix is torch's condition
    torch._inductor.aoti_compile_and_package(program, package_path=str(new), inductor_configs={**OPTIONS})
    new.replace(path)


class _Pass(nn.Module):
    """A pass as torch.export wants it: a module whose arguments are tensors."""

    def __init__(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        super().__init__()
        self.function = function
        self.fixed = [None if isinstance(argument, Tensor) else argument for argument in arguments]

    def forward(self, *tensors: Tensor) -> tuple[()]:
        given = iter(tensors)
        self.function(*(next(given) if value is None else value for value in self.fixed))
        return ()


def _cpu() -> str:
    """Return what machine code depends on: the kind of CPU and its instructions."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join([platform.machine(), platform.processor(), *told])
