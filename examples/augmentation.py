"""An augmentation of one's own: a probability, a draw and an apply, written as the package's own are.

    python examples/augmentation.py                # four clips of four frames, some of them reversed

To train with it, add the probability to `View` (sce_video/augment/view.py), the draw at the end of `draw` (augment/draws.py),
so that the draws of all others stay as they were, and the apply to `_apply_one` (augment/pipeline.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sce_video.randomness import generator


def draw_reversed(probability: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw whether each clip plays backwards, from its own generator: bool [B]."""
    uniform = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in generators])
    return uniform < probability


def reverse_time(clips: Tensor, chosen: Tensor) -> Tensor:
    """Return clips [B, C, T, H, W] with the frames of the chosen ones (bool [B]) in reverse order."""
    return torch.where(chosen.to(clips.device)[:, None, None, None, None], clips.flip(2), clips)


if __name__ == "__main__":
    clips = torch.arange(4.0)[None, None, :, None, None].expand(4, 3, 4, 1, 1)
    chosen = draw_reversed(0.5, [generator(0, "reverse", row) for row in range(4)])
    print(chosen.tolist(), reverse_time(clips, chosen)[:, 0, :, 0, 0].tolist())
