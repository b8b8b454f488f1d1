"""Training with labels as a method of the one loop: finetuning, or a linear probe where the backbone is frozen.

One clip per video; cross-entropy with label smoothing; optionally mixup and CutMix (see `augment.mixing`). All draws are
keyed by (seed, epoch, row), so that a clip gets the same ones in any batch, on any rank and after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment import mixing
from ..distributed import to_device
from ..models.encoder import Classifier
from ..randomness import generator
from . import Rows, Step


class Supervised(nn.Module):
    """A classifier and the labels of the videos.

    Args:
        classifier: backbone, dropout and linear layer.
        labels: the class of each video of the training list, in 0..num_classes - 1.
        seed: of the draws for dropout and mixing.
        label_smoothing: share of the target that is spread over all classes.
        mixup_alpha, cutmix_alpha: see `augment.mixing.draw`; 0 is off.
    """

    def __init__(
        self,
        classifier: Classifier,
        labels: Sequence[int],
        *,
        seed: int,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
    ) -> None:
        super().__init__()
        self.online = classifier
        self.labels = list(labels)
        self.seed = seed
        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the loss of a micro-batch, whose only view is clips [B, 3, T, S, S], and `top1` in 0..1."""
        (clips,) = views
        keys = list(zip(batch.epochs, batch.rows, strict=True))
        # A replaced video brings its own label.
        labels = to_device(torch.tensor([self.labels[source] for source in batch.sources]), clips.device)
        targets = F.one_hot(labels, self.online.linear.out_features).float()
        if self.mixup_alpha or self.cutmix_alpha:
            drawn = mixing.draw(self.seed, keys, mixup_alpha=self.mixup_alpha, cutmix_alpha=self.cutmix_alpha)
            clips, targets = mixing.apply(clips, targets, drawn)
        width = self.online.linear.in_features
        uniform = torch.stack([torch.rand(width, generator=generator(self.seed, "dropout", *key)) for key in keys])
        logits = self.online(clips, to_device(uniform, clips.device))
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
        return Step(loss, figures={"top1": (logits.argmax(dim=1) == labels).detach().float().mean()})

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Do nothing: there is no momentum branch and no queue."""

    # A checkpoint holds the classifier under its own names, as `load_classifier` reads it.
    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Return the classifier's state dict."""
        return self.online.state_dict(*arguments, **options)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the classifier's state dict."""
        return self.online.load_state_dict(state_dict, strict, assign)
