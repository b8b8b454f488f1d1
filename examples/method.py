"""A method of one's own: SimSiam (Chen and He, CVPR 2021), negative cosine similarity without momentum, queue or negatives.

    python examples/method.py                      # on the built-in videos, with the demo's recipe
    python examples/method.py data.train=/data/my_videos recipe=sce_r3d18_ucf101 out=runs/simsiam

The contract is `sce_video.methods.Method`. The options of `sce.` are not used.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from sce_video.pretrain import pretrain
from torch import Tensor, nn

from sce_video.command_line import run_program
from sce_video.config.pretrain import PretrainConfig
from sce_video.methods import Rows, Step
from sce_video.models import backbones
from sce_video.models.encoder import MLP, Encoder


class SimSiam(nn.Module):
    """Each view's prediction should point at the other view's projection, which gets no gradient."""

    def __init__(self, online: Encoder) -> None:
        super().__init__()
        self.online = online

    def forward(self, views: Sequence[Tensor], batch: Rows, where: float) -> Step:
        """Return the mean over both directions of minus the cosine similarity. views: two, [B, 3, T, S, S]."""
        projections = [self.online.projector(self.online.backbone(view)) for view in views[:2]]
        predictions = [self.online.predictor(projection) for projection in projections]
        similarity = sum(
            F.cosine_similarity(prediction, projection.detach(), dim=1).mean()
            for prediction, projection in zip(predictions, reversed(projections), strict=True)
        )
        return Step(-similarity / 2, figures={"similarity": (similarity / 2).detach()})

    def after_step(self, keys: Sequence[Tensor], where: float) -> None:
        """Do nothing: there is no momentum branch."""


def build(cfg: PretrainConfig) -> SimSiam:
    """Build the networks that the recipe names."""
    backbone, width = backbones.build(cfg.model.backbone)
    hidden, projection = cfg.model.hidden, cfg.model.projection
    projector = MLP([width, hidden, hidden, projection], last_norm=True)
    return SimSiam(Encoder(backbone, projector, MLP([projection, hidden, projection], last_norm=False)))


if __name__ == "__main__":
    run_program("pretrain", PretrainConfig, lambda cfg: pretrain(cfg, build))
