"""Evaluate features while training: kNN accuracy and retrieval R@1 on small labelled lists, and a collapse alarm.

One centre crop of one clip per video keeps it cheap; `tools/retrieval.py` runs the full protocol.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..data.manifest import Video, label_ids
from ..errors import Stopped
from ..evaluation import extract, metrics
from ..evaluation.views import Views, test_size
from ..models.encoder import FrozenEncoder


class CollapseAlarm:
    """Detects collapse: all keys have become alike; the loss looks ordinary, but nothing is learnt.

    std: of the keys, per dimension times the square root of their width: 1 when they are spread over the sphere, 0 when all
    are the same. Below it for `steps` steps (0: never) there is an alarm, which with `stop` ends the run.
    """

    def __init__(self, std: float, steps: int, *, stop: bool) -> None:
        self.std, self.steps, self.stop = std, steps, stop
        self._since: int | None = None

    def look(self, step: int, feature_std: float, report: Callable[[str], None]) -> None:
        """Check a logged step's figure, equal on all ranks. Raises Stopped if the alarm ends the run."""
        if feature_std >= self.std:
            self._since = None
            return
        self._since = step if self._since is None else self._since
        if self.steps and step - self._since >= self.steps:
            text = (
                f"collapse: feature_std has been below {self.std:g} since step {self._since} (it is {feature_std:.3g} at "
                f"step {step}): all clips look alike to the network"
            )
            if self.stop:
                raise Stopped(f"{text}; the learning rate, sce.temp_target and the augmentation are the usual causes")
            report(f"warning: {text}")
            self._since = step


class Monitor:
    """Scores an encoder on a bank and a query list, both labelled; classes of the two lists are numbered together."""

    def __init__(
        self,
        bank: Sequence[Video],
        query: Sequence[Video],
        *,
        device: torch.device,
        mean: float,
        std: float,
        clip: dict[str, float],
        clips_per_video: int,
        k: int,
        temp: float,
        decoder: str,
        workers: int,
        precision: str = "fp32",
    ) -> None:
        self.bank, self.query = bank, query
        _, (self.bank_ids, self.query_ids) = label_ids(bank, query)
        self.device = device
        self.mean, self.std, self.clip = mean, std, clip
        self.clips_per_video = clips_per_video
        self.k, self.temp = k, temp
        self.decoder, self.workers = decoder, workers
        self.precision = precision

    def score(self, backbone: nn.Module) -> dict[str, float]:
        """Return knn_top1 and r_at_1 in 0..1, and how many videos were read; the backbone is left as it is."""
        # A copy: freezing the backbone in training would change its mode and its gradients.
        encoder = FrozenEncoder(copy.deepcopy(backbone), "", mean=self.mean, std=self.std, clip=self.clip)
        bank, query = self._extract(encoder, self.bank), self._extract(encoder, self.query)
        bank_labels = torch.tensor([self.bank_ids[row] for row in bank.rows])
        query_labels = torch.tensor([self.query_ids[row] for row in query.rows])
        pair = (query.features["backbone"], query_labels, bank.features["backbone"], bank_labels)
        return {
            "knn_top1": metrics.knn_accuracy(*pair, k=self.k, temp=self.temp),
            "r_at_1": metrics.recall_at_k(*pair, ks=(1,))[1],
            "videos_read": float(len(bank.rows) + len(query.rows)),
            "videos_listed": float(len(self.bank) + len(self.query)),
        }

    def _extract(self, encoder: FrozenEncoder, videos: Sequence[Video]) -> extract.Features:
        views = Views(
            clips_per_video=self.clips_per_video,
            num_crops=1,
            num_frames=int(self.clip["num_frames"]),
            clip_seconds=self.clip["clip_seconds"],
            size=test_size(int(self.clip["size"])),
            precision=self.precision,
        )
        return extract.extract(encoder, videos, views, device=self.device, decoder=self.decoder, workers=self.workers)
