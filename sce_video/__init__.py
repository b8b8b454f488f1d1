"""sce_video: self-supervised pretraining of video encoders by Similarity Contrastive Estimation.

Programs are in `tools/`; from Python:

    import sce_video
    encoder = sce_video.load_encoder("runs/demo")      # uint8 or float clips [B, 3, T, H, W] -> features [B, width]
    classifier, classes = sce_video.load_classifier("runs/finetune_demo")     # the same clips -> logits [B, classes]

The main path, in reading order: `pretrain.py`, `training/loop.py`, `methods/sce.py`, `losses.py`, `data/dataset.py`,
`augment/pipeline.py`.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_classifier", "load_encoder"]

# Public names that stay importable from here: `from sce_video.metrics import recall_at_k`.
_SHORT_NAMES = {"checkpoint": "weights.read", "metrics": "evaluation.metrics", "optim": "training.optim"}


def _lazy_module(name: str, target: str) -> types.ModuleType:
    """Return a module whose names are those of `target`, which is imported with the first use: torch stays out until then."""
    module = types.ModuleType(f"{__name__}.{name}", f"The names of `{__name__}.{target}`.")
    module.__getattr__ = lambda item: getattr(importlib.import_module(f"{__name__}.{target}"), item)  # type: ignore
    return module


for _name, _target in _SHORT_NAMES.items():
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _lazy_module(_name, _target)


def __getattr__(name: str) -> Any:
    # Importing the package stays quick: torch comes with the first use.
    if name in ("load_classifier", "load_encoder"):
        return getattr(importlib.import_module(f"{__name__}.weights.load"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
