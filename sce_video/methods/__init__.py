"""Methods, one file each, and the contract between a method and the loop: this page.

A method is an `nn.Module` that fulfils `Method`. `method=` chooses a class: one of METHODS, `package.module:Name` or
`path/to/file.py:Name`. The class, usually the module's own, says how it is made from options:

    Options                 a dataclass; its fields are the section of options with the method's name (`byol.momentum=0.99`, or
                            `Name.momentum=` for one of your own). Without it there is no section. A method `check(cfg)` of it
                            may raise InputError for options that do not fit each other.
    build(cfg)              a static method that returns the module; `cfg`, a config.pretrain.PretrainConfig, has the section as
                            `cfg.method_options`.

Optional attributes of the object or its class:

    min_views = 1           global views that it needs (`augment.global_views`)
    takes_local = False     whether it uses local views (`augment.local.views`), which come after the global ones
    branch = "online"       the encoder that is evaluated, exported and loaded by default: `online` or `target`
    without_gradient = ()   names of parameters that may get no gradient in a step; any other such parameter is refused
    count_parts(num_views) -> int, and forward(..., part=0, keys=()): for a loss that is a sum of parts. The loop then goes
                            forward and backward through one part after another, which needs the memory of one. The losses of
                            the parts add up to the loss; `keys` are those of part 0.

The optimiser trains every parameter that requires a gradient, inside `online` or not. A `Step` is the output for one
micro-batch; an optimiser step adds the gradients of `optim.accumulate` of them. `Step.keys` and `Step.figures` may stay empty.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from ..errors import InputError
from ..models.named import is_named, load_named

METHODS = {
    "sce": "SCE",
    "moco": "MoCo",
    "mocov3": "MoCoV3",
    "ressl": "ReSSL",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "swav": "SwAV",
    "lejepa": "LeJEPA",
}


class Step(NamedTuple):
    """The result of a forward pass.

    loss: scalar of this micro-batch.
    keys: outputs of the momentum encoder on this rank, one tensor [B, C] per global view; the loop concatenates those of all
        micro-batches and passes them to `after_step`.
    figures: for the log; tensors (scalars) are averaged over micro-batches and ranks, floats are the same everywhere.
    """

    loss: Tensor
    keys: Sequence[Tensor] = ()
    figures: Mapping[str, Tensor | float] = {}


class Rows(Protocol):
    """Which clips a micro-batch holds, one entry per clip.

    rows: index in the list of videos; sources: index of the video that the clip shows, another one where the first could
    not be read; epochs: with the row, the key of all random draws.
    """

    rows: list[int]
    sources: list[int]
    epochs: list[int]


class Method(Protocol):
    """The parts that the loop relies on."""

    online: Any
    """The encoder that is trained and kept: an `nn.Module` with a `backbone`."""

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the loss of a micro-batch of views, float [B, 3, T, S, S] each; `where` is the share of steps made."""

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Update the method after an optimiser step, never after a skipped one; keys [accumulate * B, C] of this rank by view."""


def section_name(method: str) -> str:
    """Return the name of a method's section of options: that of a built-in one, or the name behind the colon."""
    return method.rpartition(":")[2]


def load_method(method: str) -> type:
    """Return the class that the option `method` names; InputError with the known names, or with what its class misses."""
    if not is_named(method) and method not in METHODS:
        known = ", ".join(METHODS)
        raise InputError(f"method={method} is not one of {known}, nor package.module:Name or path/to/file.py:Name")
    found = load_named(method if is_named(method) else f"{__name__}.{method}:{METHODS[method]}", "method")
    problems = []
    if not isinstance(found, type):
        problems.append("it must be a class")
    if not _takes(getattr(found, "build", None), None):
        problems.append("`build(cfg)` is missing: a static method that returns the module")
    if hasattr(found, "Options") and not (isinstance(found.Options, type) and is_dataclass(found.Options)):
        problems.append("`Options` must be a dataclass: its fields are the method's options")
    if problems:
        raise InputError(f"method={method} is not a method: {'; '.join(problems)} (see sce_video/methods)")
    chosen: type = found
    return chosen


def build_method(cfg: Any) -> nn.Module:
    """Return the method that a `config.pretrain.PretrainConfig` names, with its networks."""
    cls: Any = load_method(cfg.method)
    method: nn.Module = cls.build(cfg)
    return method


def evaluated(method: Any) -> Any:
    """Return the encoder that a method has evaluated."""
    return getattr(method, getattr(method, "branch", "online"))


def check_method(method: object, *, num_global: int | None = None, num_local: int = 0) -> None:
    """Raise InputError with a sentence per missing part unless `method` fulfils the contract.

    num_global, num_local: the views of the recipe; None: not checked.
    """
    name = getattr(method, "name", type(method).__name__)
    if not isinstance(method, nn.Module):
        raise InputError(f"a method must be an nn.Module, not {name}")
    branch, listed = getattr(method, "branch", "online"), set(getattr(method, "without_gradient", ()))
    unknown = sorted(listed - {key for key, _ in method.named_parameters()})
    parts = {
        "`online` must be a module with a `backbone`: the encoder that is kept and evaluated": _has_backbone(method, "online"),
        f"`branch` ({branch!r}) must be 'online' or 'target'": branch in ("online", "target"),
        "`branch` is 'target': `target` must be a module with a `backbone`": branch != "target" or _has_backbone(method, branch),
        "`forward` must take (views, batch, where) and return a Step": _takes(method.forward, [], None, 0.0),
        "with `count_parts`, `forward` must take part= and keys= too": (
            not hasattr(method, "count_parts") or _takes(method.forward, [], None, 0.0, part=0, keys=())
        ),
        "`after_step(keys, where)` is missing: it may do nothing": _takes(getattr(method, "after_step", None), [], 0.0),
        "no parameter requires a gradient: there is nothing to train": any(p.requires_grad for p in method.parameters()),
        f"`without_gradient` names {unknown[:1]}, which is no parameter": not unknown,
    }
    problems = [sentence for sentence, holds in parts.items() if not holds]
    if problems:
        raise InputError(f"{name} is not a method: {'; '.join(problems)} (see sce_video/methods)")
    least = getattr(method, "min_views", 1)
    if num_global is not None and num_global < least:
        raise InputError(f"{name} needs {least} global views of a video: add augment.global_views={least}")
    if num_global is not None and num_local and not getattr(method, "takes_local", False):
        raise InputError(f"{name} uses no local views: leave augment.local.views out, or set it to 0")


def check_step(step: object, method: object) -> None:
    """Raise InputError unless a forward pass returned a Step whose loss is a scalar with a gradient."""
    if not isinstance(step, Step):
        raise InputError(f"{type(method).__name__} is not a method: `forward` returned {type(step).__name__}, not a Step")
    if not (isinstance(step.loss, Tensor) and step.loss.ndim == 0 and step.loss.requires_grad):
        raise InputError(f"{type(method).__name__} is not a method: the loss of its Step must be a scalar tensor with a gradient")


def check_gradients(method: nn.Module) -> None:
    """Raise InputError with the parameters that a backward pass gave no gradient, but for those that the method lists."""
    listed = set(getattr(method, "without_gradient", ()))
    idle = [key for key, value in method.named_parameters() if value.requires_grad and value.grad is None and key not in listed]
    if idle:
        more = f" and {len(idle) - 3} more" if len(idle) > 3 else ""
        raise InputError(
            f"{type(method).__name__}: {', '.join(idle[:3])}{more} got no gradient in the first step: use them in the loss, "
            "freeze them by requires_grad_(False), or name them in `without_gradient`"
        )


def _has_backbone(method: object, branch: str) -> bool:
    return isinstance(getattr(getattr(method, branch, None), "backbone", None), nn.Module)


def _takes(function: Callable[..., Any] | None, *arguments: Any, **named: Any) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(*arguments, **named)
    except TypeError:
        return False
    return True
