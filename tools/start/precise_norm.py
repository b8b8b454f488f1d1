"""Population statistics of batch norms: means and variances over many clips instead of a moving average (Wu and Johnson, 2021).

The moving average follows the last batches of training and their augmentation. Here the clips are those of evaluation, the
networks are in training mode (each pass is normalised by itself), and every clip counts equally.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sce_video.data.manifest import Video
from sce_video.errors import InputError
from sce_video.evaluation.views import Views, view_outputs
from sce_video.models.encoder import FrozenEncoder

Norm = nn.modules.batchnorm._BatchNorm


class _Sums:
    """Sums over all inputs [N, C, ...] of a batch norm, in float64."""

    def __init__(self, norm: Norm) -> None:
        self.norm = norm
        self.count = 0
        self.total = torch.zeros(norm.num_features, dtype=torch.float64)
        self.squares = torch.zeros(norm.num_features, dtype=torch.float64)
        self.hook = norm.register_forward_pre_hook(self.add)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().transpose(0, 1).flatten(1).double().cpu()
        self.count += values.shape[1]
        self.total += values.sum(dim=1)
        self.squares += values.square().sum(dim=1)

    def finish(self) -> None:
        self.hook.remove()
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        mean = self.total / self.count
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(self.squares / self.count - mean.square())


def set_population_statistics(
    encoder: FrozenEncoder,
    videos: Sequence[Video],
    views: Views,
    *,
    device: torch.device,
    decoder: str = "auto",
    workers: int = 0,
) -> tuple[int, int]:
    """Set the running statistics of the encoder's batch norms to those over all views of the videos, its projector's too.

    Return the numbers of batch norms and of clips. A pass takes 8 clips on a CPU and 64 on a GPU. Raises InputError for a
    network without batch norms, and where no video can be read.
    """
    norms = [module for module in encoder.modules() if isinstance(module, Norm) and module.running_mean is not None]
    if not norms:
        raise InputError(f"{encoder.name} has no batch norm with running statistics: there is nothing to set")
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]  # type: ignore[union-attr]
    sums = [_Sums(norm) for norm in norms]
    encoder.to(device).train()

    def network(clips: Tensor) -> Tensor:
        features: Tensor = encoder(clips)
        return features if encoder.projector is None else encoder.project(features)

    found = view_outputs(network, videos, views, device=device, decoder=decoder, workers=workers, title="videos")
    clips = sum(len(rows) for rows, _, _ in found) * views.count
    encoder.eval()
    for norm, (mean, variance) in zip(norms, kept, strict=True):  # what the passes left
        norm.running_mean, norm.running_var = mean, variance
    if not clips:
        raise InputError("none of the videos could be read: there are no statistics to set")
    for one in sums:
        if one.count:  # else a part of the network that these clips do not pass
            one.finish()
    encoder.to(device)
    return len(norms), clips
