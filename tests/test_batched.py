"""The batched augmentation equals the one that defines it, clip by clip, in few launches that do not grow with the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counting import Counting
from torch import Tensor

from sce_video import augment, losses
from sce_video.augment import Parameters, View, batched, mixing, rand_augment
from sce_video.augment.batched import MEMORY_BYTES, Source
from sce_video.augment.view import Local
from sce_video.data.packed import Packed
from sce_video.data.readers.planes import WEIGHTS, Coding, PlanarClip
from sce_video.models.momentum import KeyQueue

FORMAT: dict[str, Any] = {"size": 40, "mean": 0.45, "std": 0.225}
USUAL = Coding(1, full_range=False)
JITTERS = ("brightness", "contrast", "saturation", "hue")
TOLERANCE = 1e-5 / 0.225  # 1e-5 of values in 0..1


def rgb_clip(generator: torch.Generator, frames: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)


def planar_clip(
    generator: torch.Generator, frames: int, height: int, width: int, top: int = 0, left: int = 0, coding: Coding = USUAL
) -> PlanarClip:
    rows, columns = (top + height + 1) // 2, (left + width + 1) // 2
    luma = torch.randint(0, 256, (frames, 2 * rows, 2 * columns), generator=generator, dtype=torch.uint8)
    chroma = torch.randint(0, 256, (frames, 2, rows, columns), generator=generator, dtype=torch.uint8)
    return PlanarClip(luma, chroma, top, left, height, width, coding)


def mixed_batch(generator: torch.Generator, differences: list[bool], frames: int = 3) -> Packed:
    """RGB and planes, odd and even sizes and offsets, smaller and larger than the result, every coding."""
    codings = [Coding(matrix, full) for matrix in WEIGHTS for full in (False, True)]
    clips: list[Tensor | PlanarClip] = []
    for i, difference in enumerate(differences):
        count, height, width = frames * (2 if difference else 1), 23 + 7 * i, 97 - 5 * i
        if i % 3 == 0:
            clips.append(rgb_clip(generator, count, height, width))
        else:
            clips.append(planar_clip(generator, count, height, width, i % 2, i // 2 % 2, codings[i % len(codings)]))
    return Packed.pack(clips)


def drawn(view: View, count: int) -> Parameters:
    return augment.draw(view, [torch.Generator().manual_seed(i) for i in range(count)])


def both(view: View, clips: Packed, parameters: Parameters, **options: Any) -> tuple[Tensor, Tensor]:
    options = FORMAT | options
    return (
        augment.apply(view, clips.unpack(), parameters, **options),
        batched.apply(view, clips.pixels, clips.sources(), parameters, **options),
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("with_differences", [False, True])
def test_all_kinds_of_clips_equal_the_definition(with_differences: bool, antialias: bool) -> None:
    differences = [with_differences and i % 4 == 1 for i in range(14)]
    clips = mixed_batch(torch.Generator().manual_seed(0), differences)
    # Hue of nearly grey pixels magnifies the last digit; it has a test of its own.
    view = View(hue=0.0, gray_probability=0.3, blur_probability=0.6, solarize_probability=0.0, erase_probability=0.5)
    expected, found = both(view, clips, drawn(view, 14), differences=differences, antialias=antialias)
    assert (found - expected).abs().max() < TOLERANCE


def test_planes_become_rgb_to_the_bit() -> None:
    """With nothing drawn and no change of size only the conversion is left."""
    view = View(jitter_probability=0, gray_probability=0, blur_probability=0, flip_probability=0)
    generator = torch.Generator().manual_seed(1)
    codings = [Coding(matrix, full) for matrix in WEIGHTS for full in (False, True)]
    clips = [planar_clip(generator, 2, 40, 40, i % 2, i // 2 % 2, coding) for i, coding in enumerate(codings)]
    packed = Packed.pack(clips)
    found = batched.apply(view, packed.pixels, packed.sources(), drawn(view, len(clips)), size=40, mean=0.0, std=1 / 255)
    for clip, result in zip(clips, found, strict=True):
        assert torch.equal(result.round(), clip.rgb().permute(3, 0, 1, 2).float())
        assert (result - result.round()).abs().max() < 1e-3


@pytest.mark.parametrize("operation", [*JITTERS, "gray", "blur", "solarize", "flip", "erase"])
def test_each_operation_alone_equals_the_definition(operation: str) -> None:
    off = {f"{name}_probability": 0.0 for name in ("jitter", "gray", "blur", "solarize", "flip", "erase")}
    view = View(**off)
    if operation in JITTERS:
        strengths = {**dict.fromkeys(JITTERS, 0.0), operation: 0.5}
        view = View(**(off | strengths | {"jitter_probability": 0.7}))
    else:
        view = View(**(off | {f"{operation}_probability": 0.6}))
    clips = mixed_batch(torch.Generator().manual_seed(2), [False] * 8)
    expected, found = both(view, clips, drawn(view, 8))
    assert (found - expected).abs().max() < (10 if operation == "hue" else 1) * TOLERANCE
    plain = augment.apply(View(**off), clips.unpack(), drawn(View(**off), 8), **FORMAT)
    assert (expected - plain).abs().amax(dim=(1, 2, 3, 4)).gt(0.01).sum() >= 3, "the operation does something"


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
def test_each_operation_of_rand_augment_equals_the_definition(name: str) -> None:
    off = {f"{part}_probability": 0.0 for part in ("jitter", "gray", "blur", "solarize", "flip", "erase")}
    view = View(**off, rand_augment_operations=2)
    clips = mixed_batch(torch.Generator().manual_seed(3), [False] * 6)
    parameters = drawn(view, 6)
    number = rand_augment.OPERATIONS.index(name)
    parameters.operations[::2, 0] = number
    strength = rand_augment.magnitude(name, 9)
    parameters.magnitudes[::2, 0] = strength * torch.tensor([1.0, -1.0 if name in rand_augment.SIGNED else 1.0, 1.0])
    parameters.operations[1::2, 0] = 0  # identity
    parameters.operations[:, 1] = 0
    expected, found = both(view, clips, parameters)
    # Steps (posterise, solarise, equalise) turn a last digit into a level here and there.
    assert (found - expected).abs().gt(TOLERANCE).float().mean() < 2e-3


def test_the_format_of_the_result_is_the_same() -> None:
    clips = mixed_batch(torch.Generator().manual_seed(4), [False] * 5)
    view = View()
    expected, found = both(view, clips, drawn(view, 5), dtype=torch.bfloat16, channels_last=True)
    assert found.dtype == torch.bfloat16
    assert found.stride() == expected.stride()
    assert (found.float() - expected.float()).abs().max() < 0.03


def test_slices_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = mixed_batch(torch.Generator().manual_seed(5), [False] * 9)
    view = View()
    with Counting("cpu") as few:
        whole = batched.apply(view, clips.pixels, clips.sources(), drawn(view, 9), **FORMAT)
    monkeypatch.setattr(batched, "MEMORY_BYTES", 700_000)
    with Counting("cpu") as many:
        sliced = batched.apply(view, clips.pixels, clips.sources(), drawn(view, 9), **FORMAT)
    assert many.launches > 2 * few.launches, "it was sliced"
    assert (sliced - whole).abs().max() < TOLERANCE


def test_too_large_a_blur_and_unequal_lengths_are_refused() -> None:
    generator = torch.Generator().manual_seed(6)
    short = Packed.pack([rgb_clip(generator, 2, 20, 20), rgb_clip(generator, 3, 20, 20)])
    with pytest.raises(ValueError, match="same number of frames"):
        batched.apply(View(), short.pixels, short.sources(), drawn(View(), 2), **FORMAT)
    clip = Packed.pack([rgb_clip(generator, 2, 20, 20)])
    with pytest.raises(ValueError, match="blur kernel_size"):
        batched.apply(View(), clip.pixels, clip.sources(), drawn(View(), 1), size=11, mean=0.0, std=1.0)


# Counted on torch's `meta` device, which computes nothing: it stands for a GPU.

FACTORS = (16, 9539, 13075, -3209, -6660, 16525)


def count(
    view: View, clips: int, frames: int, size: int, *, planar: bool = True, difference: bool = False, **options: Any
) -> Counting:
    """Count one view of Kinetics-like crops, at most 256 x 340."""
    generator = torch.Generator().manual_seed(0)
    height, width = (
        torch.randint(low, high + 1, (clips,), generator=generator).tolist() for low, high in ((128, 256), (170, 340))
    )
    height[0], width[0] = 256, 340
    differences = [difference and i % 5 == 0 for i in range(clips)]
    sources, start = [], 0
    for i in range(clips):
        source = Source(start, frames * (2 if differences[i] else 1), height[i], width[i], coding=FACTORS if planar else None)
        sources.append(source)
        start += source.frames * height[i] * width[i] * 3
    pixels = torch.empty(start, dtype=torch.uint8, device="meta")
    parameters = drawn(view, clips)
    with Counting("meta") as counted:
        out = batched.apply(
            view, pixels, sources, parameters, size=size, mean=0.45, std=0.225, differences=differences, **options
        )
    assert out.shape == (clips, 3, frames, size, size)
    counted.peak -= out.numel() * out.element_size()
    assert counted.reads == 0, "nothing is read back"
    assert counted.blocking_copies == 0
    return counted


def test_launches_do_not_grow_with_the_number_of_clips() -> None:
    few, many = count(View(), 32, 4, 112), count(View(), 128, 4, 112)
    assert few.launches == many.launches <= 250
    assert few.copies == many.copies == 1, "the parameters of a batch travel together"


@pytest.mark.parametrize(
    ("view", "options", "most"),
    [
        (View(), {}, 250),
        (View(), {"planar": False}, 250),
        (View(), {"antialias": True}, 300),
        (View(), {"difference": True}, 330),
        (View(solarize_probability=0.2, erase_probability=0.25), {}, 270),
        (View(rand_augment_operations=2), {}, 450),
    ],
    ids=["default", "rgb", "antialias", "difference", "solarize and erase", "RandAugment"],
)
def test_launches_and_memory_of_64_clips_are_bounded(view: View, options: dict[str, Any], most: int) -> None:
    counted = count(view, 64, 8, 224, **options)
    assert counted.launches <= most
    assert counted.peak <= MEMORY_BYTES


def test_local_views_are_as_cheap() -> None:
    local = Local(views=4)
    assert count(local.view, 64, 8, local.size).launches == count(local.view, 16, 8, local.size).launches <= 250


def test_a_step_takes_at_most_500_launches_outside_the_networks_and_reads_nothing() -> None:
    """64 videos, two views of 8 x 224: augmentation, loss forward and backward, queue. Vector updates are single launches."""
    views = [View(), View(blur_probability=0.1, solarize_probability=0.2)]
    launches = sum(count(view, 64, 8, 224).launches for view in views)
    with torch.device("meta"):
        queue, keys = KeyQueue(65536, 256), torch.empty(64, 256)
        queries = [torch.empty(64, 256, requires_grad=True) for _ in views]
    with Counting("meta") as counted:
        for query in queries:
            losses.sce(query, keys, queue.keys, temp=0.1, temp_target=0.05, coeff=0.5).backward()
        queue.push(torch.cat([keys, keys]))
    assert (counted.reads, counted.blocking_copies, counted.copies) == (0, 0, 0)
    assert launches + counted.launches <= 500


def test_mixing_takes_the_same_launches_for_any_number_of_clips() -> None:
    launches = []
    for clips in (32, 128):
        keys = [(0, row) for row in range(clips)]
        mixed = mixing.draw(0, keys, mixup_alpha=0.8, cutmix_alpha=1.0)
        inputs = torch.empty(clips, 3, 4, 32, 32, device="meta"), torch.empty(clips, 10, device="meta")
        with Counting("meta") as counted:
            mixing.apply(*inputs, mixed)
        assert (counted.reads, counted.blocking_copies, counted.copies) == (0, 0, 1)
        launches.append(counted.launches)
    assert launches[0] == launches[1] <= 40
