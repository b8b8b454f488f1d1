"""Images train, test and are searched as clips of one frame; options about time are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gloo
import numpy as np
import pytest
import torch
from conftest import compose_finetune, compose_pretrain, losses, run_tool
from PIL import Image
from test_batched import TOLERANCE, both, drawn, rgb_clip

import sce_video
from sce_video.augment import View, unnormalize
from sce_video.augment.geometry import normalize
from sce_video.config.pretrain import PretrainConfig
from sce_video.data import synthetic
from sce_video.data.packed import Packed
from sce_video.errors import InputError
from sce_video.evaluation.views import choose_counts, cut_crops
from sce_video.models import backbones
from sce_video.models.encoder import FrozenEncoder
from sce_video.programs.finetune import finetune
from sce_video.programs.pretrain import pretrain

IMAGES = {
    "sce_r50_imagenet": "resnet50",
    "sce_r50_imagenet_multicrop": "resnet50",
    "sce_r18_imagenet100": "resnet18",
    "sce_r18_stl10": "resnet18",
    "sce_r18_cifar": "resnet18_cifar",
}
TINY = ["recipe=image_demo", "augment.size=32", "model.hidden=32", "model.projection=16", "sce.queue=40", "optim.batch=8"]
TINY += [
    "optim.epochs=2",
    "optim.warmup_epochs=1",
    "system.workers=0",
    "system.log_every=1",
    "monitor.train=''",
    "monitor.val=''",
]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train/ and val/ of class folders with 16 and 8 pictures of all formats in 4 classes."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(24):
        frames, label = synthetic.render("train", index)
        ending = ("png", "jpg", "webp")[index % 3]
        path = folder / ("val" if index >= 16 else "train") / f"class_{label % 4}" / f"{index:02d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frames[40]).save(path)
    return folder


def compose(name: str, *more: str) -> PretrainConfig:
    return compose_pretrain(f"recipe={name}", "data.train=x.csv", *more)


@pytest.mark.parametrize("name", ["sce_r50_imagenet", "sce_r50_imagenet_multicrop"])
def test_imagenet_recipes_have_the_published_values(name: str) -> None:
    """Specification, sections 0 and 4, one by one."""
    cfg = compose(name)
    assert (cfg.data.num_frames, cfg.data.clip_seconds, cfg.model.backbone) == (1, 0, "resnet50")
    assert (cfg.augment.size, cfg.augment.area_min, cfg.augment.area_max) == (224, 0.2, 1.0)
    assert (cfg.augment.ratio_min, cfg.augment.ratio_max) == (0.75, 4 / 3)
    assert (cfg.augment.mean, cfg.augment.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for view, blur, solarize in zip(cfg.augment.views, [1.0, 0.1, *[0.5] * 4], [0, 0.2, *[0.2] * 4], strict=False):
        assert (view.jitter_probability, view.gray_probability, view.flip_probability) == (0.8, 0.2, 0.5)
        assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (view.blur_probability, view.solarize_probability, view.solarize_threshold) == (blur, solarize, 0.5)
        assert (view.blur_kernel, view.blur_sigma_min, view.blur_sigma_max) == (23, 0.1, 2.0)
    assert (cfg.sce.coeff, cfg.sce.temp, cfg.sce.temp_target) == (0.5, 0.1, 0.07)
    assert (cfg.sce.queue, cfg.sce.momentum, cfg.sce.symmetric) == (65536, 0.99, True)
    assert (cfg.model.hidden, cfg.model.projection) == (4096, 256)
    assert (cfg.optim.name.value, cfg.optim.momentum, cfg.optim.trust_coefficient) == ("lars", 0.9, 0.001)
    assert (cfg.optim.batch, cfg.optim.lr, cfg.optim.weight_decay) == (4096, pytest.approx(4.8), 1e-6)
    assert (cfg.optim.epochs, cfg.optim.warmup_epochs) == (200, 10)
    crops = [(192, 0.172, 0.86), (160, 0.143, 0.715), (128, 0.114, 0.571), (96, 0.086, 0.429)]
    found = [(crop.size, crop.area_min, crop.area_max) for crop in cfg.augment.local.all_crops()]
    assert found == (crops if name.endswith("multicrop") else [])
    assert cfg.augment.sizes == [224, 224, *(size for size, _, _ in found)]


def test_the_cifar_recipe_has_the_authors_values() -> None:
    """The values of CIFAR-10 in github.com/CEA-LIST/SCE; the header of the recipe names what differs."""
    cfg = compose("sce_r18_cifar")
    assert (cfg.augment.size, cfg.augment.area_min, cfg.augment.area_max) == (32, 0.2, 1.0)
    weak, strong = cfg.augment.view1, cfg.augment.view2
    assert (weak.jitter_probability, weak.gray_probability, weak.blur_probability, weak.flip_probability) == (0, 0, 0, 0.5)
    assert (strong.jitter_probability, strong.gray_probability, strong.blur_probability) == (0.8, 0.2, 0.5)
    assert (strong.brightness, strong.contrast, strong.saturation, strong.hue) == (0.4, 0.4, 0.4, 0.1)
    assert (cfg.sce.coeff, cfg.sce.temp, cfg.sce.temp_target, cfg.sce.symmetric) == (0.5, 0.1, 0.05, False)
    assert (cfg.sce.queue, cfg.sce.momentum) == (4096, 0.99)
    assert (cfg.optim.name.value, cfg.optim.batch, cfg.optim.lr, cfg.optim.weight_decay) == ("sgd", 256, 0.06, 5e-4)
    assert (cfg.optim.epochs, cfg.optim.warmup_epochs) == (200, 5)


def test_the_linear_probe_has_the_authors_values() -> None:
    cfg = compose_finetune("recipe=linear_imagenet", "backbone=resnet50", "train=x", "test=x", "data.num_frames=1")
    assert (cfg.model.frozen, cfg.model.dropout, cfg.optim.name.value, cfg.optim.momentum) == (True, 0, "sgd", 0.9)
    assert (cfg.optim.batch, cfg.optim.lr, cfg.optim.weight_decay) == (1024, pytest.approx(0.4), 0)
    assert (cfg.optim.epochs, cfg.optim.warmup_epochs) == (90, 0)
    assert (cfg.augment.size, cfg.augment.area_min, cfg.augment.area_max) == (224, 0.08, 1.0)
    view = cfg.augment.view
    assert (view.jitter_probability, view.gray_probability, view.blur_probability, view.flip_probability) == (0, 0, 0, 0.5)
    assert (cfg.testing.clips_per_video, cfg.testing.num_crops, cfg.testing.size, cfg.testing.short_side) == (1, 1, 224, 256)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("data.num_frames=8", r"data\.num_frames \(8\) must be 1"),
        ("data.speed_max=2", r"data\.speed_min, data\.speed_max needs time"),
        ("data.frame_jitter=0.5", r"data\.frame_jitter needs time"),
        ("augment.temporal_difference_probability=0.2", r"augment\.temporal_difference_probability needs time"),
        ("monitor.clips_per_video=2", r"monitor\.clips_per_video needs time"),
        ("monitor.videos=10", r"monitor\.videos needs time"),
        ("data.clip_seconds=-1", r"clip_seconds"),
    ],
)
def test_options_about_time_are_refused_for_images(option: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        compose("sce_r18_cifar", option)


def test_a_network_for_images_is_refused_in_a_recipe_for_videos() -> None:
    with pytest.raises(InputError, match=r"model\.backbone=resnet50 is for images"):
        compose("sce_r3d18_k400", "model.backbone=resnet50")
    with pytest.raises(InputError, match="takes images, got clips of 4 frames"):
        backbones.build("resnet18")[0](torch.zeros(2, 3, 4, 32, 32))


def test_images_have_one_clip_in_tests_and_several_are_refused() -> None:
    assert choose_counts(0, 0, 2.56) == (10, 3)
    assert choose_counts(0, 0, 0) == (1, 1)
    assert choose_counts(5, 1, 2.56) == (5, 1)
    assert choose_counts(1, 3, 0) == (1, 3)
    with pytest.raises(InputError, match=r"clips_per_video \(10\) needs time"):
        choose_counts(10, 0, 0)


@pytest.mark.parametrize("values", ["mean=[0.1,0.2]", "mean=[0.1,0.2,0.3]", "mean=x", "std=0", "std=[1,1,-1]"])
def test_mean_and_std_are_one_number_or_three(values: str) -> None:
    with pytest.raises(InputError, match=r"augment\.|std|mean"):
        compose("sce_r3d18_k400", f"augment.{values}")


def test_local_views_of_different_sizes_are_checked() -> None:
    crop = "{size: 32, area_min: 0.1, area_max: 0.2}"
    with pytest.raises(InputError, match="must not be given together"):
        compose("sce_r18_cifar", "augment.local.views=1", f"augment.local.crops=[{crop}]")
    with pytest.raises(InputError, match=r"augment\.local\.size \(48\) must be at most augment\.size \(32\)"):
        compose("sce_r18_cifar", f"augment.local.crops=[{crop.replace('32', '48')}]")
    with pytest.raises(InputError, match="must rise"):
        compose("sce_r18_cifar", f"augment.local.crops=[{crop.replace('0.1', '0.9')}]")


def test_channels_are_normalized_one_by_one() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    clips = torch.rand(2, 3, 1, 5, 6)
    column = torch.tensor([mean, std]).view(2, 3, 1, 1, 1)
    expected = (clips - column[0]) / column[1]
    assert torch.equal(normalize(clips.clone(), mean, std), expected)
    assert torch.equal(normalize(clips.clone(), 0.45, 0.225), (clips - 0.45) / 0.225)
    assert torch.allclose(unnormalize(expected, mean, std), clips)
    frozen = FrozenEncoder(torch.nn.Flatten(), "flat", mean=mean, std=std, clip={})
    assert torch.equal(frozen(clips), expected.flatten(1))


@pytest.mark.parametrize("antialias", [False, True])
def test_batched_augmentation_of_images_equals_the_definition(antialias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    clips = Packed.pack([rgb_clip(generator, 1, 20 + 9 * i, 70 - 4 * i) for i in range(9)])
    view = View(hue=0.0, gray_probability=0.3, blur_probability=0.6, solarize_probability=0.0)
    channels: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    expected, found = both(view, clips, drawn(view, 9), antialias=antialias, **channels)
    assert expected.shape == (9, 3, 1, 40, 40)
    assert (found - expected).abs().max() < TOLERANCE


def test_crops_may_be_smaller_than_the_scaled_short_side() -> None:
    frames = torch.randint(0, 256, (1, 60, 80, 3), dtype=torch.uint8)
    whole = cut_crops(frames, size=48, num_crops=1)
    inner = cut_crops(frames, size=40, short_side=48, num_crops=1)
    assert torch.equal(inner[0], whole[0][..., 4:44, 4:44])


def test_the_image_path_is_the_video_path_with_one_frame_to_the_bit(tmp_path: Path) -> None:
    """The same JPEG bytes as pictures and as videos of one frame: every loss and every tensor of the run is equal."""
    for index in range(16):
        picture = np.random.default_rng(index).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        (tmp_path / f"videos/{index:02d}.frames").mkdir(parents=True)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(picture).resize((80, 60)).save(tmp_path / f"pictures/{index:02d}.jpg")
        (tmp_path / f"videos/{index:02d}.frames/000000.jpg").write_bytes((tmp_path / f"pictures/{index:02d}.jpg").read_bytes())
        (tmp_path / f"videos/{index:02d}.frames/video.json").write_text('{"fps": "1"}')
    runs = []
    for kind, seconds in (("pictures", 0), ("videos", 0.5)):
        options = [f"data.train={tmp_path / kind}", f"data.clip_seconds={seconds}", f"out={tmp_path / f'run_{kind}'}"]
        runs.append(pretrain(compose_pretrain(*TINY, *options)))
    assert losses(runs[0]) == losses(runs[1])
    assert len(losses(runs[0])) == 4
    found = [sce_video.load_encoder(run).backbone.state_dict() for run in runs]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_images_in_a_recipe_for_videos_and_the_reverse_write_nothing(images: Path, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an image, .*sce_r50_imagenet"):
        pretrain(compose_pretrain(*TINY, "recipe=demo", f"data.train={images / 'train'}", f"out={tmp_path / 'run'}"))
    with pytest.raises(InputError, match="is no image, .*recipe=sce_r3d18"):
        pretrain(compose_pretrain(*TINY, f"data.train={videos / 'train.csv'}", f"out={tmp_path / 'run'}"))
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.slow
def test_images_pretrain_are_scored_searched_probed_and_written_as_features(images: Path, tmp_path: Path) -> None:
    train, val = images / "train", images / "val"
    pretrain(
        compose_pretrain(
            *TINY,
            f"data.train={train}",
            f"monitor.train={train}",
            f"monitor.val={val}",
            "optim.epochs=1",
            f"out={tmp_path / 'run'}",
        )
    )
    lists = [f"train={train}", f"test={val}"]
    for program, options in (
        ("retrieval", [*lists, "out=r.json"]),
        ("evaluate", [*lists, "shots=[1]", "repeats=1", "linear=false", "out=e.json"]),
        ("features", [f"data={val}", "out=f.npz"]),
    ):
        done = run_tool(program, "checkpoint=run", "workers=0", "cache=false", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "f.npz", allow_pickle=False)["features"].shape == (8, 128)
    refused = run_tool("retrieval", "checkpoint=run", *lists, "clips_per_video=2", cwd=tmp_path)
    assert refused.returncode == 70
    assert "clips_per_video (2) needs time" in refused.stderr
    small = ["optim.batch=8", "optim.epochs=1", "augment.size=32", "augment.short_side_min=32", "augment.short_side_max=40"]
    small += ["testing.size=32", "testing.short_side=36", "system.workers=0"]
    options = [*lists, f"checkpoint={tmp_path / 'run'}", f"out={tmp_path / 'labels'}"]
    result = finetune(compose_finetune("recipe=linear_imagenet", *options, *small))[0]
    assert result["test"]["scored"] == 8
    with pytest.raises(InputError, match="frame_jitter needs time"):
        finetune(
            compose_finetune("recipe=linear_imagenet", *options, *small, "data.frame_jitter=0.5", f"out={tmp_path / 'other'}")
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_image_recipes_take_two_steps_with_their_real_networks(name: str, images: Path, tmp_path: Path) -> None:
    few = ["optim.batch=8", "optim.epochs=1", "optim.warmup_epochs=0", "sce.queue=16", "optim.precision=fp32", "system.workers=0"]
    few += ["system.log_every=1", "augment.size=48", "augment.view1.blur_kernel=9", "augment.view2.blur_kernel=9"]
    if name.endswith("multicrop"):
        few += ["augment.local.view.blur_kernel=9"]
        few += ["augment.local.crops=[{size: 40, area_min: 0.172, area_max: 0.86}, {size: 32, area_min: 0.143, area_max: 0.715}]"]
    cfg = compose_pretrain(f"recipe={name}", f"data.train={images / 'train'}", *few, f"out={tmp_path / 'run'}")
    assert cfg.model.backbone == IMAGES[name]
    run = pretrain(cfg)
    assert len(losses(run)) == 2
    encoder = sce_video.load_encoder(run)
    assert encoder.clip == {"num_frames": 1, "clip_seconds": 0, "size": 48}
    assert encoder(torch.zeros(2, 3, 1, 48, 48)).shape == (2, backbones.build(IMAGES[name])[1])
    assert encoder.mean == cfg.augment.mean


@pytest.mark.slow
def test_two_ranks_train_on_images_as_one_process(images: Path, tmp_path: Path) -> None:
    options = [*TINY, f"data.train={images / 'train'}", "model.backbone=resnet18_cifar", "augment.size=24", "optim.epochs=2"]
    options += ["augment.view1.blur_kernel=5", "augment.view2.blur_kernel=5", "optim.name=sgd", "optim.lr_per_256=0.02"]
    one, two = (
        gloo.run(world, tmp_path / str(world), [*options, f"out={tmp_path / str(world) / 'run'}"], dtype="float64")
        for world in (1, 2)
    )
    states = [rank["state"] for rank in (*one, *two)]
    for key, value in states[0].items():
        for other in states[1:]:
            assert (other[key].double() - value.double()).abs().max() < 1e-10, key
    assert max(abs(a - b) for a, b in zip(*(losses(tmp_path / f"{world}/run") for world in (1, 2)), strict=True)) < 1e-6


@pytest.mark.parametrize("name", backbones.IMAGE_BACKBONES)
def test_weights_of_resnets_are_recognised_with_the_values_of_images(name: str, tmp_path: Path) -> None:
    network, width = backbones.build(name)
    tensors = {**network.state_dict(), "fc.weight": torch.zeros(10, width), "fc.bias": torch.zeros(10)}
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "w.pth")
    encoder = sce_video.load_encoder(tmp_path / "w.pth")
    assert (encoder.name, encoder.mean, encoder.clip["num_frames"], encoder.clip["clip_seconds"]) == (
        *(name, [0.485, 0.456, 0.406]),
        *(1, 0),
    )
    clips = torch.rand(2, 3, 1, 32, 32)
    column = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1, 1)
    with torch.no_grad():
        assert torch.allclose(encoder(clips), network.eval()((clips - column[0]) / column[1]), atol=1e-6)
