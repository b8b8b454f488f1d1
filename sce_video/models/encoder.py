"""A backbone with its heads: what is trained, and the frozen encoder that comes out of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class MLP(nn.Module):
    """Linear layers with batch norm and ReLU between them: [B, widths[0]] -> [B, widths[-1]].

    Hidden linear layers have no bias (the batch norm has), nor has the last one. `last_norm` ends in a batch norm without
    affine parameters. Weights are torch's default. State keys are `layers.N`, as in the reference's checkpoints.
    """

    def __init__(self, widths: Sequence[int], *, last_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(widths[:-2], widths[1:-1], strict=True):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
        if last_norm:
            layers.append(nn.BatchNorm1d(widths[-1], affine=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layers(features)
        return output


class Encoder(nn.Module):
    """Backbone, projector and, in the online branch, predictor: clips [B, 3, T, H, W] -> unit rows [B, C].

    The projection is not normalised before the predictor, only the last output is.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.predictor = predictor

    def forward(self, clips: Tensor) -> Tensor:
        output = self.projector(self.backbone(clips))
        if self.predictor is not None:
            output = self.predictor(output)
        # Normalise in float32 even under autocast: the queue holds float32 unit rows.
        return F.normalize(output if output.dtype.itemsize > 2 else output.float(), dim=1)


class FrozenEncoder(nn.Module):
    """A backbone for use: uint8 clips in 0..255 or float clips in 0..1, [B, 3, T, H, W] -> features [B, width].

    Normalises the clips as in pretraining. `name` is the backbone's, `clip` what it was trained on: num_frames,
    clip_seconds, size (pixels). `projector` is the one it was trained with, where the checkpoint has it; `report` says in
    one line where the weights came from.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        *,
        mean: float,
        std: float,
        clip: dict[str, float],
        projector: nn.Module | None = None,
        report: str = "",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.name = name
        self.mean = mean
        self.std = std
        self.clip = clip
        self.report = report
        self.eval().requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        if not clips.is_floating_point():
            clips = clips.float() / 255
        features: Tensor = self.backbone((clips - self.mean) / self.std)
        return features

    def project(self, features: Tensor) -> Tensor:
        """Return the projection [B, C] of features [B, width], not normalised. Raises InputError without a projector."""
        if self.projector is None:
            raise InputError(f"this {self.name} encoder has no projector: load a checkpoint of pretraining to project")
        projected: Tensor = self.projector(features)
        return projected
