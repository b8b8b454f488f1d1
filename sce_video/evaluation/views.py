"""Run a network on several views of every video, with one open and one decode pass per video.

Protocol (SCE, section 6): evenly spread clips, the short side scaled to the crop size, 1 or 3 square crops, clip by clip.
The device cuts the crops. Each rank takes its share of the rows. An unreadable video, also one whose worker
dies, is reported and never replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from .. import augment, distributed
from ..data import crops
from ..data.dataset import Batch, EvaluationDataset, Failure
from ..data.manifest import Video
from ..data.workers import STALL_SECONDS, Batches, Quarantine
from ..errors import InputError

# Views per forward pass, to bound memory. On a CPU a few views stay in the caches.
VIEWS_AT_ONCE = {"cuda": 64, "cpu": 8}
AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
NATIVE_SHORT_SIDE = 256  # decoding scales frames down to it: the size in which Kinetics is distributed


@dataclass(frozen=True)
class Views:
    """The views of a video: clips_per_video evenly spread clips x num_crops (1 or 3) crops."""

    clips_per_video: int
    num_crops: int
    num_frames: int
    clip_seconds: float
    size: int  # of the square crops, pixels
    precision: str = "fp32"  # of the network on a GPU: a key of AUTOCAST
    short_side: int = 0  # to which the short side is scaled before the crops are cut; 0: their size

    @property
    def count(self) -> int:
        """Views per video, in the order clip 0 crop 0, clip 0 crop 1, ..., clip 1 crop 0, ..."""
        return self.clips_per_video * self.num_crops

    @property
    def middle(self) -> int:
        """Index of the centre crop of the middle clip, called `1 view` in the tables."""
        return self.clips_per_video // 2 * self.num_crops + self.num_crops // 2


def choose_counts(clips_per_video: int, num_crops: int, clip_seconds: float) -> tuple[int, int]:
    """Return clips per video and crops per clip; 0 stands for the protocol: 10 and 3, or 1 and 1 of an image (0 seconds).

    Raises InputError for several clips of an image.
    """
    if not clip_seconds and clips_per_video > 1:
        raise InputError(
            f"clips_per_video ({clips_per_video}) needs time, and the data are images of one clip each: leave it out"
        )
    return clips_per_video or (10 if clip_seconds else 1), num_crops or (3 if clip_seconds else 1)


def test_size(size: int) -> int:
    """Return the crop size for testing, 8/7 of the training size: 256 for 224, 128 for 112."""
    return round(size * 8 / 7)


def cut_crops(frames: Tensor, *, size: int, num_crops: int, short_side: int = 0, out: Tensor | None = None) -> Tensor:
    """Cut `num_crops` (1: centre, 3: along the longer side) squares after scaling the short side to `short_side` or `size`.

    frames uint8 [T, h, w, 3] -> float32 in 0..1 [num_crops, 3, T, size, size], written into `out` if given.
    """
    clip = frames.permute(3, 0, 1, 2).contiguous()  # transposing bytes is cheaper than transposing floats
    height, width = crops.short_side(clip.shape[-2], clip.shape[-1], short_side or size)
    scaled = (height, width) != tuple(clip.shape[-2:])
    if scaled:
        clip = augment.resize(clip.float().div_(255), (height, width))
    boxes = crops.three_crops(height, width, size) if num_crops == 3 else [crops.center_crop(height, width, size)]
    if out is None:
        out = torch.empty((num_crops, *clip.shape[:2], size, size), device=clip.device)
    for crop, box in zip(out, boxes, strict=True):
        crop.copy_(clip[..., box.top : box.top + size, box.left : box.left + size])
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
    outputs: float32 [len(rows), views.count, width] on the CPU, of the readable videos.
    rows: indices into `videos`, by default all. title: of the progress bar; empty: no bar.
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
        max_short_side=max(NATIVE_SHORT_SIDE, views.size, views.short_side),
        decoder=decoder,
    )
    at_once = VIEWS_AT_ONCE[device.type]
    batches = Batches(
        dataset,
        BatchSampler(own, max(1, at_once // views.count), drop_last=False),
        workers=workers,
        pin_memory=device.type == "cuda",
        read_timeout=STALL_SECONDS,  # a long video is read as a whole
        recycle=0,
        quarantine=Quarantine(None),
    )
    # One buffer for all batches: allocating this much memory costs more than filling it.
    group = max(1, at_once // views.num_crops)
    shape = (group, views.num_crops, 3, views.num_frames, views.size, views.size)
    buffer = torch.empty(shape, device=device)
    hidden = None if title and distributed.rank() == 0 else True  # None: only on a terminal
    with batches, tqdm(total=len(own), desc=title, unit="video", disable=hidden) as bar:
        for batch in batches:
            bar.update(len(batch.rows) + len(batch.failures))
            yield batch.rows, _run_network(network, batch, views, device, buffer), batch.failures
            del batch  # free it before decoding the next one


def gather_in_order(rows: Sequence[int], parts: Sequence[Tensor]) -> tuple[list[int], Tensor | None]:
    """Return the rows of all ranks, ascending, and their outputs in that order; None if no rank has any.

    rows, parts: this rank's rows, and their outputs [n, ...] in the same order, a few at a time.
    """
    found = distributed.gather_rows(torch.cat(list(parts)) if parts else None)
    everywhere = [row for own in distributed.gather_objects(list(rows)) for row in own]
    order = sorted(range(len(everywhere)), key=everywhere.__getitem__)
    return sorted(everywhere), None if found is None else found[order]


def _run_network(network: Callable[[Tensor], Tensor], batch: Batch, views: Views, device: torch.device, buffer: Tensor) -> Tensor:
    """Return the outputs [videos, views, width] of a batch of full frames, one buffer of crops at a time."""
    by_view = [view.to(device).unpack() for view in batch.views]
    by_video = [clip for clips in zip(*by_view, strict=True) for clip in clips]  # video by video, clip by clip
    outputs = []
    for start in range(0, len(by_video), len(buffer)):
        few = by_video[start : start + len(buffer)]
        for clip, crop in zip(few, buffer, strict=False):
            cut_crops(clip, size=views.size, num_crops=views.num_crops, short_side=views.short_side, out=crop)
        clips = buffer[: len(few)].flatten(0, 1)
        if device.type == "cuda":  # the layout in which training is fastest too
            clips = clips.contiguous(memory_format=torch.channels_last_3d)
        dtype = AUTOCAST[views.precision] if device.type == "cuda" else None
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs.append(network(clips).float())
    # One read per batch: the device works on while the host cuts the next crops.
    return torch.cat(outputs).cpu().unflatten(0, (-1, views.count)) if outputs else torch.empty(0)
