"""sce_video: self-supervised pretraining of video encoders by Similarity Contrastive Estimation and its relatives.

Programs are in `tools/` and, installed, `sce-video`; from Python (docs/python.md):

    import sce_video
    run = sce_video.pretrain(recipe="demo", out="runs/demo")      # also finetune, evaluate, retrieve
    encoder = sce_video.load_encoder(run)                         # clips [B, 3, T, H, W] -> features [B, width]
    features, times = sce_video.embed(["a.mp4", "b.mp4"], encoder)

The main path, in reading order: `programs/pretrain.py`, `training/loop.py`, `methods/sce.py`, `losses.py`,
`data/dataset.py`, `augment/pipeline.py`.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "embed", "evaluate", "finetune", "load_classifier", "load_encoder", "pretrain", "retrieve"]

# Public names that stay importable from here: `from sce_video.metrics import recall_at_k`.
_SHORT_NAMES = {
    **{"checkpoint": "weights.read", "metrics": "evaluation.metrics", "optim": "training.optim"},
    **{name: f"programs.{name}" for name in ("pretrain", "finetune", "evaluate", "retrieval", "embed", "export")},
}


class _LazyModule(types.ModuleType):
    """A module whose names are those of another, imported with the first use: torch stays out until then.

    Called, it is the function of that name in `api`: `sce_video.pretrain(...)` beside `from sce_video.pretrain import ...`.
    """

    def __getattr__(self, item: str) -> Any:
        if item.startswith("__"):  # whoever looks through all modules imports nothing
            raise AttributeError(item)
        target = _SHORT_NAMES[self.__name__.rpartition(".")[2]]
        return getattr(importlib.import_module(f"{__name__}.{target}"), item)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.api"), self.__name__.rpartition(".")[2])(*arguments, **options)


for _name in _SHORT_NAMES:
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _LazyModule(f"{__name__}.{_name}")


def __getattr__(name: str) -> Any:
    # Importing the package stays quick: torch comes with the first use.
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
