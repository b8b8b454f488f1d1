"""Counts what a GPU would be asked to do: launches, copies, reads back and live memory, on any device, also `meta`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sce_video.training.memory import LiveMemory

NO_LAUNCH = {
    *("view", "_unsafe_view", "expand", "permute", "transpose", "t", "unbind", "split", "split_with_sizes", "select", "slice"),
    *("unsqueeze", "squeeze", "alias", "detach", "as_strided", "numpy_T", "unfold", "lift_fresh", "view_as", "_reshape_alias"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}


class Counting(LiveMemory):
    """Counts operations whose results are on `device`."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.names: Counter[str] = Counter()
        self.launches = 0
        self.copies = 0  # from another device
        self.blocking_copies = 0
        self.reads = 0  # of values by the host

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(function, types, args, kwargs)
        name = function._schema.name.split("::")[1]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == self.device for tensor in inputs) and name in ("_local_scalar_dense", "equal", "nonzero"):
            self.reads += 1
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.device.type == self.device]
        if outputs and name not in NO_LAUNCH:
            self.launches += 1
            self.names[name] += 1
            if any(tensor.device.type != self.device and tensor.dim() for tensor in inputs) and name in ("_to_copy", "copy_"):
                self.copies += 1
                self.blocking_copies += not ((kwargs or {}).get("non_blocking") or True in args[2:])
        return result
