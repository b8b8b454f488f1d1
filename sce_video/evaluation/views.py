"""Many views of every video from one open and one decode pass: what testing, retrieval, kNN, probes and search share.

Protocol (SCE, section 6): evenly spread clips, the short side scaled to the crop size, 1 or 3 square crops, clip by clip.
Crops are cut on the device. Any number of processes: each takes its share of the rows. A video that cannot be read is
listed, never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from .. import augment, distributed
from ..data import crops
from ..data.dataset import Batch, EvaluationDataset, Failure, collate
from ..data.manifest import Video
from ..data.workers import STALL_SECONDS, prepare_worker

# Views in one forward pass: bounds memory whatever their number. On a CPU few stay in the caches.
VIEWS_AT_ONCE = {"cuda": 32, "cpu": 8}
NATIVE_SHORT_SIDE = 256  # frames are scaled down to it while decoding: the size in which Kinetics is distributed


@dataclass(frozen=True)
class Views:
    """Which views of a video are looked at: clips_per_video evenly spread clips x num_crops (1 or 3) crops of each."""

    clips_per_video: int
    num_crops: int
    num_frames: int
    clip_seconds: float
    size: int  # of the square crops, pixels

    @property
    def count(self) -> int:
        """Views per video. Their order: clip 0 crop 0, clip 0 crop 1, ..., clip 1 crop 0, ..."""
        return self.clips_per_video * self.num_crops

    @property
    def middle(self) -> int:
        """Index of the centre crop of the middle clip: what `1 view` means in our tables."""
        return self.clips_per_video // 2 * self.num_crops + self.num_crops // 2


def test_size(size: int) -> int:
    """Return the crop size for testing, 8/7 of the training size: 256 for 224, 128 for 112."""
    return round(size * 8 / 7)


def test_crops(frames: Tensor, *, size: int, num_crops: int, out: Tensor | None = None) -> Tensor:  # noqa: PT028
    """Cut `num_crops` (1: centre, 3: along the longer side) squares after scaling the short side to `size`.

    frames uint8 [T, h, w, 3] -> float32 in 0..1 [num_crops, 3, T, size, size], written into `out` if given.
    """
    clip = frames.permute(3, 0, 1, 2).contiguous()  # bytes are cheap to turn around, floats are not
    height, width = crops.short_side(clip.shape[-2], clip.shape[-1], size)
    scaled = (height, width) != tuple(clip.shape[-2:])
    if scaled:
        clip = augment.resize(clip.float().div_(255), (height, width))
    boxes = crops.three_crops(height, width, size) if num_crops == 3 else [crops.center_crop(height, width, size)]
    if out is None:
        out = torch.empty((num_crops, *clip.shape[:2], size, size), device=clip.device)
    for place, box in zip(out, boxes, strict=True):
        place.copy_(clip[..., box.top : box.top + size, box.left : box.left + size])
    return out if scaled else out.div_(255)


@torch.no_grad()
def view_outputs(
    network: Callable[[Tensor], Tensor],
    videos: Sequence[Video],
    views: Views,
    *,
    device: torch.device,
    decoder: str = "auto",
    workers: int = 0,
    rows: Sequence[int] | None = None,
    title: str = "",
) -> Iterator[tuple[list[int], Tensor, list[Failure]]]:
    """Yield (rows, outputs, failures) for this rank's share of the rows, a few videos at a time.

    network: float clips in 0..1 [B, 3, T, size, size] on `device` -> [B, width].
    outputs: float32 [len(rows), views.count, width] on the CPU, of the videos that could be read.
    rows: those of `videos` to look at, by default all. title: of the progress bar; empty: none.
    """
    rows = range(len(videos)) if rows is None else rows
    own = [rows[i] for i in range(distributed.rank(), len(rows), distributed.world_size())]
    if not own:
        return
    dataset = EvaluationDataset(
        videos,
        clips_per_video=views.clips_per_video,
        num_frames=views.num_frames,
        clip_seconds=views.clip_seconds,
        max_short_side=max(NATIVE_SHORT_SIDE, views.size),
        decoder=decoder,
    )
    at_once = VIEWS_AT_ONCE[device.type]
    batches: DataLoader[Batch] = DataLoader(
        Subset(dataset, own),  # type: ignore[arg-type]
        batch_size=max(1, at_once // views.count),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=prepare_worker if workers else None,
        timeout=STALL_SECONDS if workers else 0,
    )
    # One buffer for all batches: fresh memory of this size costs more than filling it.
    group = max(1, at_once // views.num_crops)
    shape = (group, views.num_crops, 3, views.num_frames, views.size, views.size)
    buffer = torch.empty(shape, device=device)
    hidden = None if title and distributed.rank() == 0 else True  # None: shown on a terminal only
    with tqdm(total=len(own), desc=title, unit="video", disable=hidden) as bar:
        for batch in batches:
            bar.update(len(batch.rows) + len(batch.failures))
            yield batch.rows, _outputs(network, batch, views, device, buffer), batch.failures
            del batch  # before the next one is decoded


def _outputs(
    network: Callable[[Tensor], Tensor], batch: Batch, views: Views, device: torch.device, buffer: Tensor
) -> Tensor:
    """Return the outputs [videos, views, width] of a batch of whole frames, a buffer of crops at a time."""
    by_view = [view.to(device).unpack() for view in batch.views]
    by_video = [clip for clips in zip(*by_view, strict=True) for clip in clips]  # video by video, clip by clip
    outputs = []
    for start in range(0, len(by_video), len(buffer)):
        few = by_video[start : start + len(buffer)]
        for clip, place in zip(few, buffer, strict=False):
            test_crops(clip, size=views.size, num_crops=views.num_crops, out=place)
        outputs.append(network(buffer[: len(few)].flatten(0, 1)).float().cpu())
    return torch.cat(outputs).unflatten(0, (-1, views.count)) if outputs else torch.empty(0)
