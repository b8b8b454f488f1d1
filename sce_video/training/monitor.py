"""Evaluate features while training: kNN and R@1 on labelled lists, figures without labels, and a collapse alarm.

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
    """Scores an encoder on a bank and a query list, both labelled, or without labels on a list of videos.

    Args:
        bank, query: labelled; classes of the two lists are numbered together. query None: two clips of each video of the
            bank are matched, and no label is needed.
        lists: what the two are, for the log, e.g. "train.csv", "val.csv".
        The other arguments: see `config.pretrain.MonitorOptions` and `evaluation.views`.
    """

    def __init__(
        self,
        bank: Sequence[Video],
        query: Sequence[Video] | None,
        *,
        lists: tuple[str, str],
        device: torch.device,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        clip: dict[str, float],
        clips_per_video: int,
        k: int,
        temp: float,
        decoder: str,
        workers: int,
        precision: str = "fp32",
    ) -> None:
        self.bank, self.query = bank, query
        if query is not None:
            _, (self.bank_ids, self.query_ids) = label_ids(bank, query)
        self.lists = lists
        self.device = device
        self.mean, self.std, self.clip = mean, std, clip
        self.k, self.temp = k, temp
        self.decoder, self.workers = decoder, workers
        self.views = Views(
            clips_per_video=clips_per_video if query is not None else 2,
            num_crops=1,
            num_frames=int(clip["num_frames"]),
            clip_seconds=clip["clip_seconds"],
            size=test_size(int(clip["size"])),
            precision=precision,
        )

    @property
    def about(self) -> str:
        """The lists and their counts, as a part of a line."""
        if self.query is None:
            return f"two clips of each of {len(self.bank)} videos of {self.lists[0]}"
        return f"{len(self.query)} videos of {self.lists[1]} against {len(self.bank)} of {self.lists[0]}"

    def score(self, backbone: nn.Module) -> dict[str, float]:
        """Return figures in 0..1, and how many videos were read; the backbone is left as it is.

        With labels: knn_top1, r_at_1. Without: the figures of `metrics.pair_scores`.
        """
        # A copy: freezing the backbone in training would change its mode and its gradients.
        encoder = FrozenEncoder(copy.deepcopy(backbone), "", mean=self.mean, std=self.std, clip=self.clip)
        options = {"device": self.device, "decoder": self.decoder, "workers": self.workers, "title": "scoring"}
        if self.query is None:
            pairs = extract.by_view(encoder, self.bank, self.views, **options)
            counts = {"videos_read": float(len(pairs)), "videos_listed": float(len(self.bank))}
            return metrics.pair_scores(pairs) | counts
        bank, query = (extract.extract(encoder, videos, self.views, **options) for videos in (self.bank, self.query))
        bank_labels = torch.tensor([self.bank_ids[row] for row in bank.rows])
        query_labels = torch.tensor([self.query_ids[row] for row in query.rows])
        pair = (query.features["backbone"], query_labels, bank.features["backbone"], bank_labels)
        return {
            "knn_top1": metrics.knn_accuracy(*pair, k=self.k, temp=self.temp),
            "r_at_1": metrics.recall_at_k(*pair, ks=(1,))[1],
            "videos_read": float(len(bank.rows) + len(query.rows)),
            "videos_listed": float(len(self.bank) + len(self.query)),
        }
