"""Each operation equals torchvision's functional one on every frame; the pipeline equals their composition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sce_video import augment
from sce_video.augment.blur import gaussian_kernel
from sce_video.models.published import import_torchvision
from sce_video.randomness import generator

import_torchvision()  # also where its operators do not match torch
import torchvision.transforms.v2.functional as TF  # noqa: E402


def inputs(name: str) -> Tensor:
    """Clips [2, 3, T, H, W] in 0..1: random and extreme ones."""
    shape = (2, 3, 1, 25, 31) if name == "one_frame" else (2, 3, 3, 24, 30)
    random = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    return {
        "random": random,
        "one_frame": random,
        "black": torch.zeros(shape),
        "white": torch.ones(shape),
        "constant": torch.full(shape, 0.3),
        "saturated": (random > 0.5).float(),
    }[name]


INPUTS = ["random", "one_frame", "black", "white", "constant", "saturated"]


def per_frame(clips: Tensor, operation: Any, values: Tensor | None = None) -> Tensor:
    """Apply torchvision's operation to [C, H, W] frames one by one, with each clip's own value."""
    result = clips.clone()
    for b in range(clips.shape[0]):
        for t in range(clips.shape[2]):
            extra = () if values is None else (values[b].item(),)
            result[b, :, t] = operation(clips[b, :, t], *extra)
    return result


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    ("ours", "theirs", "factors", "tolerance"),
    [
        (augment.adjust_brightness, TF.adjust_brightness, (0.2, 1.8), 1e-5),
        (augment.adjust_contrast, TF.adjust_contrast, (0.0, 1.8), 1e-5),
        (augment.adjust_saturation, TF.adjust_saturation, (0.6, 1.4), 1e-5),
        (augment.adjust_hue, TF.adjust_hue, (-0.2, 0.5), 1e-4),
    ],
)
def test_jitter_equals_torchvision(name: str, ours: Any, theirs: Any, factors: Any, tolerance: float) -> None:
    clips, factor = inputs(name), torch.tensor(factors)
    result = ours(clips, factor)
    assert (result - per_frame(clips, theirs, factor)).abs().max() <= tolerance
    assert result.min() >= 0
    assert result.max() <= 1


@pytest.mark.parametrize("name", INPUTS)
def test_grayscale_and_solarize_equal_torchvision(name: str) -> None:
    clips = inputs(name)
    gray = per_frame(clips, lambda frame: TF.rgb_to_grayscale(frame, 3))
    assert (augment.grayscale(clips) - gray).abs().max() <= 1e-5
    solarized = per_frame(clips, lambda frame: TF.solarize(frame, 0.5))
    assert torch.equal(augment.solarize(clips, 0.5), solarized)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_equals_torchvision(name: str, sigma: float) -> None:
    clips = inputs(name)
    blurred = augment.gaussian_blur(clips, torch.tensor([sigma, 1.3]), 23)
    expected = per_frame(clips, lambda frame, s: TF.gaussian_blur(frame, [23, 23], [s, s]), torch.tensor([sigma, 1.3]))
    assert (blurred - expected).abs().max() <= 1e-5


def test_blur_kernel_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="must be odd and under twice"):
        augment.gaussian_blur(torch.zeros(1, 3, 1, 11, 40), torch.ones(1), 23)


def test_kernel_taps_are_the_references(conformance: dict[str, Any]) -> None:
    for sigma in ("0.1", "0.5", "1.0", "2.0"):
        expected = conformance["color_ops"][f"gaussian_kernel1d_23_sigma{sigma}_taps_-3..3"]
        assert gaussian_kernel(float(sigma), 23)[8:15].tolist() == pytest.approx(expected, abs=1e-6)


def test_colour_operations_are_the_references(conformance: dict[str, Any]) -> None:
    case = conformance["color_ops"]
    clips = torch.tensor(case["input_TCHW"]).permute(1, 0, 2, 3)[None]  # [1, 3, T, H, W]
    one = {
        "brightness_1.5": augment.adjust_brightness(clips, torch.tensor([1.5])),
        "contrast_0.5": augment.adjust_contrast(clips, torch.tensor([0.5])),
        "saturation_1.4": augment.adjust_saturation(clips, torch.tensor([1.4])),
        "hue_0.1": augment.adjust_hue(clips, torch.tensor([0.1])),
        "grayscale": augment.grayscale(clips),
        "solarize_0.5": augment.solarize(clips, 0.5),
        "normalize_0.45_0.225": (clips - 0.45) / 0.225,
    }
    for name, result in one.items():
        values = result[0].permute(1, 0, 2, 3).flatten().tolist()
        assert values == pytest.approx(case[name], abs=1e-5), name
    impulse = torch.zeros(1, 1, 1, 25, 25)
    impulse[..., 12, 12] = 1
    blurred = augment.gaussian_blur(impulse, torch.tensor([1.0]), 23)[0, 0, 0]
    assert blurred[12, 12:14].tolist() == pytest.approx(case["blur_impulse_sigma1_center_and_right"], abs=1e-5)


def test_resize_is_the_references(conformance: dict[str, Any]) -> None:
    case = conformance["crop_resize_bilinear_no_antialias"]
    frame = torch.tensor(case["input"])
    assert augment.resize(frame, tuple(case["size"])).flatten().tolist() == pytest.approx(
        np.ravel(case["out"]).tolist(), abs=1e-5
    )
    assert augment.resize(frame, (3, 3)).flatten().tolist() == pytest.approx(np.ravel(case["size3"]).tolist(), abs=1e-5)


def test_temporal_difference_is_the_references(conformance: dict[str, Any]) -> None:
    case = conformance["temporal_difference"]
    frames = torch.tensor(case["rgb_in"])[:, :, None, None]  # [3, T, 1, 1]
    result = augment.temporal_difference(frames)
    for channel in result:
        assert channel.flatten().tolist() == pytest.approx(case["float_out_each_channel"], abs=1e-4)
    integer = augment.temporal_difference(frames.to(torch.uint8))
    assert integer.dtype == torch.uint8
    assert integer[0].flatten().tolist() == case["uint8_out_each_channel"]
    gray = torch.tensor(case["gray_in"]).float().expand(3, 3)[:, :, None, None]
    assert augment.temporal_difference(gray)[0].flatten().tolist() == pytest.approx(case["gray_out"], abs=1e-4)


def test_temporal_difference_of_one_frame_is_zero_and_of_a_static_clip_grey() -> None:
    assert torch.equal(augment.temporal_difference(torch.rand(3, 1, 4, 4)), torch.zeros(3, 1, 4, 4))
    static = (torch.rand(3, 1, 4, 4) * 255).expand(3, 5, 4, 4)
    assert torch.allclose(augment.temporal_difference(static), torch.full((3, 5, 4, 4), 127.5))


def test_temporal_difference_with_given_followers_equals_shifting() -> None:
    frames = torch.rand(3, 6, 4, 4) * 255
    pairs = augment.temporal_difference(frames[:, :5], frames[:, 1:])
    assert torch.allclose(pairs, augment.temporal_difference(frames)[:, :5])


VIEW = augment.View(solarize_probability=0.5, blur_probability=0.5, gray_probability=0.5, blur_kernel=23)


def keyed(count: int) -> list[torch.Generator]:
    return [generator("augment", i) for i in range(count)]


def random_clips(sizes: list[tuple[int, int]], num_frames: int = 2) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(256, (num_frames, h, w, 3), generator=rng, dtype=torch.uint8) for h, w in sizes]


def test_pipeline_equals_torchvision_composed() -> None:
    clips = random_clips([(60, 80), (33, 47), (32, 32), (100, 20)] * 6)
    drawn = augment.draw(VIEW, keyed(len(clips)))
    result = augment.apply(VIEW, clips, drawn, size=32, mean=0.45, std=0.225)
    jitters = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]
    for b, clip in enumerate(clips):
        for t, frame in enumerate(clip):
            image = frame.permute(2, 0, 1).float() / 255
            image = TF.resize(image, [32, 32], antialias=False)
            if drawn.jitter[b]:
                for i in drawn.order[b].tolist():
                    image = jitters[i](image, drawn.factors[b, i].item())
            if drawn.gray[b]:
                image = TF.rgb_to_grayscale(image, 3)
            if drawn.blur[b]:
                image = TF.gaussian_blur(image, [23, 23], [drawn.sigma[b].item()] * 2)
            if drawn.solarize[b]:
                image = TF.solarize(image, 0.5)
            if drawn.flip[b]:
                image = TF.horizontal_flip(image)
            assert (result[b, :, t] * 0.225 + 0.45 - image).abs().max() <= 2 / 255, (b, t)


def test_a_clip_does_not_depend_on_its_batch() -> None:
    clips = random_clips([(40, 50), (60, 30), (32, 32)])
    together = augment.apply(VIEW, clips, augment.draw(VIEW, keyed(3)), size=32, mean=0.45, std=0.225)
    for b in range(3):
        alone = augment.draw(VIEW, keyed(3)[b : b + 1])
        assert torch.equal(augment.apply(VIEW, clips[b : b + 1], alone, size=32, mean=0.45, std=0.225)[0], together[b])


def test_static_clips_stay_static() -> None:
    clips = [clip[:1].expand(4, -1, -1, -1) for clip in random_clips([(40, 50)] * 16)]
    result = augment.apply(VIEW, clips, augment.draw(VIEW, keyed(16)), size=32, mean=0.45, std=0.225)
    assert torch.equal(result, result[:, :, :1].expand_as(result))


def test_difference_clips_are_differences_of_their_halves() -> None:
    view = augment.View(jitter_probability=0, gray_probability=0, blur_probability=0, flip_probability=0, solarize_probability=0)
    (frames,) = random_clips([(32, 32)], num_frames=4)
    result = augment.apply(view, [frames], augment.draw(view, keyed(1)), size=32, mean=0.0, std=1.0, differences=[True])
    halves = frames.permute(3, 0, 1, 2).float()
    expected = augment.temporal_difference(halves[:, :2], halves[:, 2:]) / 255
    assert torch.allclose(result[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([torch.zeros(2, 40, 40, 3)] * 2, "clip 0 is torch.float32, not torch.uint8"),
        ([torch.zeros(2, 40, 40, 3, dtype=torch.uint8), torch.zeros(40, 40, 3, dtype=torch.uint8)], r"clip 1 has shape"),
        ([torch.zeros(2, 3, 40, 40, dtype=torch.uint8)] * 2, r"shape \[2, 3, 40, 40\], not \[T, h, w, 3\]"),
        ([torch.zeros(0, 40, 40, 3, dtype=torch.uint8)] * 2, "all sides above 0"),
        ([torch.zeros(t, 40, 40, 3, dtype=torch.uint8) for t in (2, 3)], "clip 1 has 3 frames, not 2"),
        ([torch.zeros(2, 40, 40, 3, dtype=torch.uint8)] * 3, "3 clips, 2 rows of parameters"),
    ],
)
def test_clips_that_are_none_are_refused(clips: list[Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment.apply(VIEW, clips, augment.draw(VIEW, keyed(2)), size=32, mean=0.45, std=0.225)


def test_a_blur_larger_than_the_result_is_refused() -> None:
    view = augment.View(blur_probability=1.0)
    with pytest.raises(ValueError, match=r"under twice the frame's sides \(11, 11\)"):
        augment.apply(view, random_clips([(40, 40)]), augment.draw(view, keyed(1)), size=11, mean=0, std=1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"flip_probability": 1.5}, "flip_probability"),
        ({"hue": 0.7}, "half a turn"),
        ({"blur_sigma_min": 0.0}, "must be positive"),
        ({"brightness": -0.1}, "at least 0"),
        ({"rand_augment_magnitude": 31}, r"must be in \[0, 30\]"),
        ({"erase_area_min": 0.5}, "must be within"),
        ({"erase_ratio_min": 0.0}, "must be positive"),
    ],
)
def test_impossible_views_are_refused(option: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment.View(**option)


MEAN, STD = 0.45, 0.225
SIZES = [(60, 81), (33, 47), (40, 40), (100, 20), (1, 1), (5, 90), (40, 77), (41, 39)]


def augmented(device: str = "cpu", **options: Any) -> Tensor:
    """Eight clips of two frames, each of its own size, as one view of 40 pixels."""
    view = augment.View(gray_probability=0.3, blur_probability=0.6, solarize_probability=0.4, erase_probability=0.3)
    pixels = torch.Generator().manual_seed(0)
    clips = [torch.randint(256, (2, height, width, 3), generator=pixels, dtype=torch.uint8) for height, width in SIZES]
    drawn = augment.draw(view, [generator("sizes", i) for i in range(len(clips))])
    return augment.apply(view, [clip.to(device) for clip in clips], drawn, size=40, mean=MEAN, std=STD, **options)


def test_results_come_in_other_types_and_layouts() -> None:
    plain, other = augmented(), augmented(dtype=torch.bfloat16, channels_last=True)
    assert torch.equal(other, plain.bfloat16())
    assert other.is_contiguous(memory_format=torch.channels_last_3d)
    assert plain.is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_to_1e_4() -> None:
    """Where a value lies on the threshold of solarising, rounding decides its side."""
    different = (augmented("cuda").cpu() - augmented()).abs() * STD > 1e-4
    assert different.double().mean() < 1e-4
