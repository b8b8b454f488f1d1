"""sce_video: self-supervised pretraining of video encoders by Similarity Contrastive Estimation.

Programs are in `tools/`; from Python:

    import sce_video
    encoder = sce_video.load_encoder("runs/demo")      # uint8 or float clips [B, 3, T, H, W] -> features [B, width]
    classifier, classes = sce_video.load_classifier("runs/finetune_demo")     # the same clips -> logits [B, classes]

The main path, in reading order: `pretrain.py`, `methods/sce.py`, `losses.py`, `data/dataset.py`.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_classifier", "load_encoder"]


def __getattr__(name: str) -> Any:
    # Importing the package stays quick: torch comes with the first use.
    if name in ("load_classifier", "load_encoder"):
        from . import encoders

        return getattr(encoders, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
