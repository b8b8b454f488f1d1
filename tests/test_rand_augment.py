"""RandAugment's operations equal torchvision's on every frame; erasing sets a box to the mean colour in all frames."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from sce_video import augment
from sce_video.augment import rand_augment
from sce_video.models.published import import_torchvision
from sce_video.randomness import generator

import_torchvision()
from torchvision.transforms import InterpolationMode, v2  # noqa: E402

THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "saturation": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
}


def clips(kind: str) -> Tensor:
    random = torch.rand(2, 3, 2, 31, 31, generator=torch.Generator().manual_seed(1))
    smooth = torch.linspace(0, 1, 31).view(1, 1, 1, 1, 31).expand(2, 3, 2, 31, 31).contiguous()
    return {"random": random, "smooth": smooth, "constant": torch.full_like(random, 0.3)}[kind]


@pytest.mark.parametrize("kind", ["random", "smooth", "constant"])
@pytest.mark.parametrize(
    ("name", "sign"), [*((name, 1) for name in rand_augment.OPERATIONS), *((name, -1) for name in rand_augment.SIGNED)]
)
def test_operations_equal_torchvision(name: str, kind: str, sign: int) -> None:
    for strength in (0, 9, 30):
        value = sign * rand_augment.magnitude(name, strength)
        theirs = v2.RandAugment(num_ops=1)
        magnitudes, signed = theirs._AUGMENTATION_SPACE[THEIRS[name]]
        assert signed == (name in rand_augment.SIGNED)
        table = magnitudes(31, 31, 31)
        if table is not None:
            pixels = 31 if name.startswith("translate") else 1
            assert value * pixels == pytest.approx(sign * float(table[strength]), abs=1e-6)
        else:
            assert value == 0
        mine = rand_augment.apply(clips(kind), rand_augment.OPERATIONS.index(name), value)
        magnitude = value * 31 if name.startswith("translate") else value
        frames = clips(kind).transpose(1, 2)
        expected = torch.stack(
            [
                torch.stack(
                    [
                        theirs._apply_image_or_video_transform(
                            frame.clone(), THEIRS[name], magnitude, InterpolationMode.NEAREST, {torch.Tensor: None}
                        )
                        for frame in clip
                    ]
                )
                for clip in frames
            ]
        ).transpose(1, 2)
        different = (mine - expected).abs() > 1e-5
        # Where the nearest pixel is a tie, rounding decides.
        allowed = 0.02 if name.startswith(("shear", "rotate")) else 0.0
        assert different.double().mean() <= allowed, (strength, different.double().mean())


def test_names_cover_torchvisions_operations() -> None:
    assert set(THEIRS.values()) == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert set(THEIRS) == set(rand_augment.OPERATIONS)
    defaults = inspect.signature(v2.RandAugment.__init__).parameters
    assert defaults["magnitude"].default == augment.View().rand_augment_magnitude
    assert defaults["num_magnitude_bins"].default == rand_augment.STEPS + 1


def test_static_clips_stay_static_under_all_operations() -> None:
    view = augment.View(rand_augment_operations=2, rand_augment_magnitude=15, erase_probability=0.5)
    moving = torch.randint(256, (20, 1, 40, 50, 3), dtype=torch.uint8)
    static = [clip.expand(3, -1, -1, -1) for clip in moving]
    drawn = augment.draw(view, [generator("static", i) for i in range(20)])
    result = augment.apply(view, static, drawn, size=32, mean=0.45, std=0.225)
    assert torch.equal(result, result[:, :, :1].expand_as(result))


def test_erasing_sets_the_drawn_box_to_the_mean() -> None:
    view = augment.View(erase_probability=1.0)
    drawn = augment.draw(view, [generator("erase", i) for i in range(30)])
    clips = [torch.full((2, 40, 40, 3), 255, dtype=torch.uint8)] * 30
    whole = augment.apply(augment.View(), clips, drawn[:30], size=32, mean=0.45, std=0.225)
    erased = whole != augment.apply(
        augment.View(),
        clips,
        augment.Parameters.from_dict({**drawn.to_dict(), "erased": torch.zeros(30, 4)}),
        size=32,
        mean=0.45,
        std=0.225,
    )
    for b, (top, left, tall, wide) in enumerate(drawn.erased.tolist()):
        box = torch.zeros(32, 32, dtype=torch.bool)
        box[round(top * 32) : round((top + tall) * 32), round(left * 32) : round((left + wide) * 32)] = True
        assert torch.equal(erased[b].any(dim=0).any(dim=0), box)
        assert (whole[b][:, :, box] == 0).all()
        assert abs(box.double().mean().item() - tall * wide) < 0.08
