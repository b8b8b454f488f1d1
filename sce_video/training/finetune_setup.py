"""From options to a run with labels: `setup.py` for finetuning and the linear probe.

The folder `best/` keeps the weights that scored best on the selecting list; every checkpoint notes that score.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import distributed
from ..config.finetune import FinetuneConfig, Select
from ..config.shared import Changed, ResizeOn, refuse_time
from ..data import loader, manifest
from ..data.crops import RandomResized, RandomScaled
from ..data.dataset import ClipDataset
from ..data.manifest import Video
from ..distributed import warn
from ..errors import InputError, log
from ..evaluation.views import Views, choose_counts, test_size
from ..methods.supervised import Supervised
from ..models.encoder import Classifier, FrozenEncoder
from ..runs import checkpoint
from ..runs.folder import RunFolder
from ..runs.rank_check import together
from ..weights import load
from . import optim, rows
from .augmenter import Augmenter
from .loop import Run
from .setup import build_run, check_machine, check_videos, how_to_augment, reading_arguments, resume, synchronise


@dataclass
class Lists:
    """The labelled lists, their classes numbered together."""

    videos: dict[str, list[Video]]  # train, test and, if given, val
    ids: dict[str, list[int]]
    classes: list[str]


@dataclass
class Finetuning:
    """A run of finetuning, with the lists and the encoder that testing and the report need."""

    cfg: FinetuneConfig
    run: Run
    lists: Lists
    encoder: FrozenEncoder  # name, normalisation and clip length; its backbone is the classifier's
    clip: dict[str, float]  # num_frames, clip_seconds, size (pixels)
    workers: int  # decoding processes

    @property
    def classifier(self) -> Classifier:
        """The network that is trained and tested."""
        classifier: Classifier = self.run.method.online
        return classifier

    @property
    def selecting(self) -> str | None:
        """The list that is scored while training: it selects the weights, or is only watched; None if there is none."""
        if self.cfg.testing.select is Select.test:
            return "test"
        return "val" if "val" in self.lists.videos else None

    def views(self, *, quick: bool = False) -> Views:
        """Return the views for testing: the full protocol, or one clip's centre crop."""
        testing = self.cfg.testing
        clips, num_crops = choose_counts(testing.clips_per_video, testing.num_crops, self.clip["clip_seconds"])
        return Views(
            clips_per_video=1 if quick else clips,
            num_crops=1 if quick else num_crops,
            num_frames=int(self.clip["num_frames"]),
            clip_seconds=self.clip["clip_seconds"],
            size=testing.size or test_size(int(self.clip["size"])),
            precision=self.cfg.optim.precision.value,
            short_side=testing.short_side,
        )


def set_up_finetuning(cfg: FinetuneConfig, device: torch.device, folder: RunFolder) -> Finetuning:
    """Check everything, build everything, load the newest checkpoint."""
    check_machine(cfg.optim, device)
    with together():
        encoder = continued(cfg, folder.path) or load_or_build(cfg)
    own = {"num_frames": cfg.data.num_frames, "clip_seconds": cfg.data.clip_seconds, "size": cfg.augment.size}
    clip = {name: value or encoder.clip[name] for name, value in own.items()}
    if not clip["clip_seconds"]:
        refuse_time(cfg.data, int(clip["num_frames"]))
    size = int(clip["size"])
    check_short_sides(size, short_sides(cfg, size))
    cfg.augment.view.check_size(size, "augment.view")
    with together():
        lists = read_lists(cfg)
    check_videos(
        cfg.optim, lists.videos["train"], seed=cfg.seed, decoder=cfg.data.decoder.value, clip_seconds=clip["clip_seconds"]
    )
    workers = loader.share_cores(device, cfg.system.workers)
    method = build_method(cfg, encoder, clip, lists)
    run = build_run(
        cfg.optim,
        cfg.system,
        synchronise(method, device, norms=not cfg.model.frozen),
        groups=parameter_groups(cfg, method),
        augment=Augmenter(
            views=[cfg.augment.view],
            sizes=[size],
            seed=cfg.seed,
            mean=encoder.mean,
            std=encoder.std,
            antialias=cfg.augment.antialias,
            device=device,
            **how_to_augment(cfg.system, device),
        ),
        dataset=build_dataset(cfg, lists.videos["train"], clip, device),
        workers=workers,
        folder=folder,
        max_bad_fraction=cfg.data.max_bad_fraction,
        about={
            "videos": len(lists.videos["train"]),
            "rows": rows.digest(lists.videos["train"]),
            "classes": lists.classes,
            "encoder": {"backbone": encoder.name, "mean": encoder.mean, "std": encoder.std, **clip},
        },
        notes={"best_top1": -1.0, "best_step": 0},
    )
    run.evaluate_every = cfg.testing.every_epochs * run.steps_per_epoch

    def check_list(meta: Mapping[str, Any]) -> None:
        for what, value in (("videos", len(lists.videos["train"])), ("classes", lists.classes)):
            if meta[what] != value:
                raise InputError(
                    f"{cfg.train} is not the list that the run in {folder.path} began with ({what}: {_short(meta[what])} "
                    f"then, {_short(value)} now): restore the list, or choose another out="
                )
        rows.check(folder.path, lists.videos["train"], meta, accept=cfg.data.changed is Changed.accept)

    resume(run, check_list)
    rows.keep(folder.path, lists.videos["train"])
    return Finetuning(cfg, run, lists, encoder, clip, workers)


def continued(cfg: FinetuneConfig, folder: Path) -> FrozenEncoder | None:
    """Return the encoder of a run that has checkpoints, whose weights they hold: `checkpoint` is not read again."""
    about = (checkpoint.newest_meta(folder / "checkpoints") or {}).get("encoder")  # `resume` reads the rest, and reports damage
    if not about:
        return None
    clip = {name: about[name] for name in ("num_frames", "clip_seconds", "size")}
    name = load.choose_backbone(folder, about["backbone"], cfg.backbone or None, trust=cfg.trust)
    return load.untrained_encoder(str(name), seed=cfg.seed, mean=about["mean"], std=about["std"], clip=clip)


def load_or_build(cfg: FinetuneConfig) -> FrozenEncoder:
    """Return the encoder to start from: the checkpoint's, its network with random weights, or one from scratch."""
    if cfg.checkpoint:
        encoder = load.load_encoder(
            cfg.checkpoint, cfg.backbone or None, trust=cfg.trust, key=cfg.weights.key, branch=cfg.weights.branch.value
        )
        if distributed.rank() == 0:
            log.info(f"weights: {encoder.report}")
        return load.untrained_like(encoder, seed=cfg.seed) if cfg.model.random_weights else encoder
    clip = {"num_frames": cfg.data.num_frames, "clip_seconds": cfg.data.clip_seconds, "size": cfg.augment.size}
    usual = load.usual(cfg.backbone)
    return load.untrained_encoder(cfg.backbone, seed=cfg.seed, mean=usual["mean"], std=usual["std"], clip=clip)


def read_lists(cfg: FinetuneConfig) -> Lists:
    """Read the lists and number their classes; warn of doubts about them.

    Raises InputError if a class of the test or val list has no training video: it could never be predicted.
    """
    sources = {"train": cfg.train, "test": cfg.test} | ({"val": cfg.val} if cfg.val else {})
    videos = {
        name: loader.read_videos(
            source,
            split="train" if name == "train" else "val",
            root=cfg.root,
            labels=cfg.labels.value,
            known_health=cfg.data.health,
            training=name == "train",
        )
        for name, source in sources.items()
    }
    classes, ids = manifest.label_ids(*videos.values())
    trained = {video.label for video in videos["train"]}
    for name in videos:
        if unknown := sorted({str(video.label) for video in videos[name]} - {str(label) for label in trained}):
            raise InputError(
                f"{len(unknown)} classes of {sources[name]} have no video in {cfg.train}, e.g. {unknown[0]!r}, where the "
                f"classes are {sorted(str(label) for label in trained)[:3]}...: the lists do not belong together"
            )
        if name != "train":
            warn(manifest.compare(videos["train"], videos[name]))
            loader.check_readable(videos[name], seed=cfg.seed, decoder=cfg.data.decoder.value)  # not after days of training
    return Lists(videos, dict(zip(videos, ids, strict=True)), classes)


def build_method(cfg: FinetuneConfig, encoder: FrozenEncoder, clip: dict[str, float], lists: Lists) -> Supervised:
    """Put a linear layer on the encoder's backbone, and the labels beside it."""
    with torch.no_grad():
        size = int(clip["size"])
        width = encoder(torch.zeros(1, 3, int(clip["num_frames"]), size, size)).shape[1]
    torch.manual_seed(cfg.seed)  # for the linear layer's weights only: all else draws from keyed generators
    classifier = Classifier(
        encoder.backbone,
        width,
        len(lists.classes),
        dropout=cfg.model.dropout,
        frozen=cfg.model.frozen,
        freeze_norm=cfg.model.freeze_norm,
    )
    return Supervised(
        classifier,
        lists.ids["train"],
        seed=cfg.seed,
        label_smoothing=cfg.optim.label_smoothing,
        mixup_alpha=cfg.augment.mixup_alpha,
        cutmix_alpha=cfg.augment.cutmix_alpha,
    ).train()


def parameter_groups(cfg: FinetuneConfig, method: Supervised) -> list[dict[str, Any]]:
    """Return the optimiser's groups, stage by stage where the stages have rates of their own (layer_decay, init_lr_scale)."""
    options, scale = cfg.optim, cfg.init_lr_scale
    if options.layer_decay == scale == 1.0:
        return optim.without_decay_on_vectors(method.parameters(), options.weight_decay)
    stages = method.online.stages()
    backbone = optim.by_depth([*stages[:-1], []], options.weight_decay, options.layer_decay)
    last = optim.by_depth(stages[-1:], options.weight_decay, 1.0)
    return [*({**group, "lr_scale": scale * group["lr_scale"]} for group in backbone), *last]


def short_sides(cfg: FinetuneConfig, size: int) -> tuple[int, int]:
    """Return the range of the random short side, pixels."""
    return cfg.augment.short_side_min or round(size * 8 / 7), cfg.augment.short_side_max or round(size * 10 / 7)


def check_short_sides(size: int, sides: tuple[int, int]) -> None:
    """Raise InputError if a frame of such a short side could be smaller than the crop."""
    low, high = sides
    if not size <= low <= high:
        raise InputError(f"augment.short_side_min..short_side_max ({low}..{high}) must begin at augment.size ({size}) or above")


def build_dataset(cfg: FinetuneConfig, videos: list[Video], clip: dict[str, float], device: torch.device) -> ClipDataset:
    """Return one random clip of each video."""
    size, options = int(clip["size"]), cfg.augment
    scaled = RandomScaled(size=size, short_sides=short_sides(cfg, size))
    resized = RandomResized(area=(options.area_min, options.area_max), ratio=(3 / 4, 4 / 3))
    return ClipDataset(
        videos,
        num_frames=int(clip["num_frames"]),
        clip_seconds=clip["clip_seconds"],
        draw_boxes=[scaled if options.area_min == 1 else resized],
        seed=cfg.seed,
        **reading_arguments(cfg.data, device),
        resize_to=[size] if cfg.data.resize_on is ResizeOn.worker else None,
        antialias=cfg.augment.antialias,
    )


def load_best(run: Run) -> None:
    """Load the weights that were best on the selecting list."""
    found = checkpoint.load_newest(run.folder.path / "best")
    if found is None:
        raise InputError(f"{run.folder.path / 'best'} holds no checkpoint: it was moved away")
    run.method.load_state_dict(found[0]["method"])


def split_configs(cfg: FinetuneConfig, out: Path) -> list[FinetuneConfig]:
    """Return the options of each split's run, or cfg itself."""
    if not cfg.splits:
        return [replace(copy.deepcopy(cfg), out=str(out))]
    configs = []
    for split in cfg.splits:
        lists = {name: getattr(cfg, name).replace("%", str(split)) for name in ("train", "test", "val")}
        # Copies of the sections, so that the runs share nothing; replace() checks the options again.
        if missing := [source for source in lists.values() if source not in ("", *loader.BUILT_IN) and not Path(source).exists()]:
            raise InputError(f"{missing[0]}, a list of split {split}, does not exist: no split was trained")
        configs.append(replace(copy.deepcopy(cfg), **lists, splits=[], out=str(out / f"split_{split}")))
    return configs


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)} classes, {', '.join(map(str, value[:3]))}, ..."
    return str(value)
