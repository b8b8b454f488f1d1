"""A backbone of one's own: a function without arguments that returns (module, width).

    python tools/pretrain.py model.backbone=examples/backbone.py:build out=runs/own_backbone

The module maps float clips [B, 3, T, H, W] to features [B, width]. Checkpoints, evaluation and export use it by the same name,
with `trust=true`, because loading it imports and calls this code.
"""

from torch import Tensor, nn

WIDTH = 64


class SmallNet(nn.Module):
    """Two strided convolutions and the mean over time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 32, (3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2), bias=False),
            nn.BatchNorm3d(32),
            nn.ReLU(inplace=True),
            nn.Conv3d(32, WIDTH, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm3d(WIDTH),
            nn.ReLU(inplace=True),
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Map clips [B, 3, T, H, W] to features [B, WIDTH]."""
        features: Tensor = self.layers(clips).mean(dim=(2, 3, 4))
        return features


def build() -> tuple[nn.Module, int]:
    """Return the network and the width of its features."""
    return SmallNet(), WIDTH
