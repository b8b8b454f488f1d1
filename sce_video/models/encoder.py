"""A backbone with its heads: the encoder and classifier that are trained, and the frozen encoder that is used."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class MLP(nn.Module):
    """Linear layers with batch norm and ReLU between them: [B, widths[0]] -> [B, widths[-1]].

    Linear layers have no bias (the hidden batch norms have one). last_norm: append a batch norm without affine parameters.
    Initialisation is torch's default. State keys are `layers.N`, as in the reference's checkpoints.
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
    """Backbone, projector and, in the online branch, predictor: clips [B, 3, T, H, W] -> unit rows [B, C]."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.predictor = predictor

    def forward(self, clips: Tensor) -> Tensor:
        output = self.projector(self.backbone(clips))
        if self.predictor is not None:
            output = self.predictor(output)
        # Only the output is normalised, not the projection; in float32 even under autocast, like the queue.
        return F.normalize(output if output.dtype.itemsize > 2 else output.float(), dim=1)


class FrozenEncoder(nn.Module):
    """A frozen backbone: uint8 clips in 0..255 or float clips in 0..1, [B, 3, T, H, W] -> features [B, width].

    Normalises the clips as in pretraining. name: the backbone's. clip: num_frames, clip_seconds and size (pixels) of its
    training. projector: that of its training, if the checkpoint has it. report: one line on the source of the weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        name: str,
        *,
        mean: float | Sequence[float],
        std: float | Sequence[float],
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
        features: Tensor = self.backbone(self.normalize(clips))
        return features

    def normalize(self, clips: Tensor) -> Tensor:
        """Return (clips - mean) / std of float clips in 0..1, with one mean and std for all channels or one for each."""
        values = (self.mean, self.std)
        mean, std = (value if isinstance(value, float | int) else clips.new_tensor(value).view(-1, 1, 1, 1) for value in values)
        return (clips - mean) / std

    def project(self, features: Tensor) -> Tensor:
        """Return the projection [B, C] of features [B, width], not normalised. Raises InputError without a projector."""
        if self.projector is None:
            raise InputError(f"this {self.name} encoder has no projector: load a checkpoint of pretraining to project")
        projected: Tensor = self.projector(features)
        return projected


class Classifier(nn.Module):
    """Backbone, dropout and one linear layer: normalised clips [B, 3, T, H, W] -> logits [B, num_classes].

    frozen: a linear probe; the backbone stays in evaluation mode without gradients. freeze_norm: its batch norms stay in
    evaluation mode with fixed affine parameters. The linear layer starts from N(0, 0.01), its bias from 0.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        num_classes: int,
        *,
        dropout: float,
        frozen: bool = False,
        freeze_norm: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(width, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.dropout = dropout
        self.frozen = frozen
        self.freeze_norm = freeze_norm
        backbone.requires_grad_(not frozen)
        for norm in self._norms() if freeze_norm else ():
            norm.requires_grad_(False)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters by stage: the backbone's blocks (or children), others in the first, the linear layer."""
        blocks = getattr(self.backbone, "blocks", None)
        parts = [list(part.parameters()) for part in (blocks if blocks is not None else self.backbone.children())]
        parts = [parameters for parameters in parts if parameters]
        inside = {id(parameter) for parameters in parts for parameter in parameters}
        rest = [parameter for parameter in self.backbone.parameters() if id(parameter) not in inside]
        first, *others = parts or [[]]
        return [rest + first, *others, list(self.linear.parameters())]

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> Classifier:
        """Set the mode of the trained parts; frozen parts stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        for norm in self._norms() if self.freeze_norm else ():
            norm.eval()
        return self

    def forward(self, clips: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return logits. uniform: draws [B, width] in [0, 1), keyed by clip: below `dropout` they drop a feature; or None."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.backbone(clips)
        if uniform is not None and self.dropout:
            features = features * (uniform >= self.dropout) / (1 - self.dropout)
        logits: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return logits
