"""Every recipe composes, has a complete header, and trains two steps with its real network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, compose_finetune, compose_pretrain, losses, run_tool

from sce_video.command_line import option_names
from sce_video.config import evaluate
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.models import backbones
from sce_video.programs.finetune import finetune
from sce_video.programs.pretrain import build_method

RECIPES = sorted(path.stem for path in (ROOT / "configs/pretrain/recipe").glob("*.yaml"))
IMAGES = [
    "sce_r50_imagenet",
    "sce_r50_imagenet_multicrop",
    "sce_r18_imagenet100",
    "sce_r18_stl10",
    "sce_r18_cifar",
]  # test_images
SCIENTIFIC = ["data.num_frames", "data.clip_seconds", "augment.size", "model.backbone", "sce.coeff", "optim.batch"]


def test_all_recipes_are_there() -> None:
    assert sorted(RECIPES) == sorted(
        ["demo", "sce_r3d18_k200", "sce_r3d18_k400", "sce_r3d18_k400_112", "sce_r3d50_k400_8f", "sce_r3d50_k400_16f"]
        + ["sce_r2plus1d18_k400", "sce_r3d18_ucf101", "image_demo", *IMAGES]
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_composes(name: str) -> None:
    cfg = compose_pretrain(f"recipe={name}", "data.train=x.csv")
    assert cfg.name == name
    assert cfg.model.backbone in backbones.BACKBONES
    text = (ROOT / f"configs/pretrain/recipe/{name}.yaml").read_text()
    assert len(text.splitlines()) <= 45
    assert "${" not in text
    if not name.endswith("demo"):
        for word in ("What", "Source", "Status", "Expected", "Cost", "Command"):
            assert f"# {word}: " in text


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("sce_r3d")])
def test_published_values(name: str) -> None:
    """Values that all video runs of the paper share (specification, section 0)."""
    cfg = compose_pretrain(f"recipe={name}", "data.train=x.csv")
    assert (cfg.sce.coeff, cfg.sce.temp, cfg.sce.temp_target, cfg.sce.momentum) == (0.5, 0.1, 0.05, 0.99)
    assert (cfg.augment.area_min, cfg.augment.area_max, cfg.augment.temporal_difference_probability) == (0.2, 0.766, 0.2)
    assert (cfg.augment.view1.blur_probability, cfg.augment.view1.solarize_probability) == (1.0, 0.0)
    assert (cfg.augment.view2.blur_probability, cfg.augment.view2.solarize_probability) == (0.1, 0.2)
    assert (cfg.optim.name.value, cfg.optim.lr_per_256, cfg.optim.weight_decay) == ("lars", 2.4, 1e-6)
    assert cfg.optim.lr == pytest.approx(4.8 if cfg.optim.batch == 512 else 0.6)
    expected = {"sce_r3d18_k200": 32768, "sce_r3d18_ucf101": 4096}
    assert cfg.sce.queue == expected.get(name, 65536)


def test_learning_rate_is_scaled_like_the_references(conformance: dict[str, list[dict[str, float]]]) -> None:
    for case in conformance["lr_scaling_linear"]:
        cfg = compose_pretrain(f"optim.lr_per_256={case['initial_lr']}", f"optim.batch={case['batch']}", "sce.queue=100000")
        assert cfg.optim.lr == pytest.approx(case["lr"])


def test_learnable_parameters_are_the_references() -> None:
    """R3D-18 with both heads: 22,389,312 learnable, 44,252,288 with the target."""
    method = build_method(compose_pretrain("recipe=sce_r3d18_k400", "data.train=x.csv", "sce.queue=1024"))
    assert sum(p.numel() for p in method.online.parameters()) == 22_389_312
    assert sum(p.numel() for p in method.parameters()) == 44_252_288


PROGRAMS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "features": evaluate.FeaturesConfig,
    "retrieval": evaluate.RetrievalConfig,
    "evaluate": evaluate.EvaluateConfig,
    "export": evaluate.ExportConfig,
}


def test_every_option_is_explained() -> None:
    files = [path for folder in ("config", "methods", "augment") for path in (ROOT / "sce_video" / folder).glob("*.py")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    for schema in PROGRAMS.values():
        for name in option_names(schema):
            assert any(line.startswith(f"    {name.split('.')[-1]}: ") for line in lines), name


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_help_names_options_that_exist(program: str) -> None:
    """`x=` at the start of a help line is an option of this program."""
    text = (ROOT / f"configs/{program}/base.yaml").read_text().split("template: |-")[1]
    shown = re.findall(r"(?:^|\s)([a-z_.0-9]+)=", text)
    assert len(shown) > 4
    assert set(shown) <= {*option_names(PROGRAMS[program]), "recipe"}


FINETUNE = sorted(path.stem for path in (ROOT / "configs/finetune/recipe").glob("*.yaml"))
CLIP = ["data.num_frames=4", "data.clip_seconds=0.8", "augment.size=32"]


@pytest.mark.parametrize("name", FINETUNE)
def test_finetune_recipe_composes(name: str) -> None:
    cfg = compose_finetune(f"recipe={name}", "backbone=r3d18", "train=x", "test=x", *CLIP)
    assert cfg.name == name
    text = (ROOT / f"configs/finetune/recipe/{name}.yaml").read_text()
    assert len(text.splitlines()) <= 45
    assert "${" not in text
    for word in ("What", "Source", "Status", "Expected", "Cost", "Command"):
        assert f"# {word}: " in text


def test_published_values_of_finetuning() -> None:
    """Section 5 of the specification; the learning rates are those after scaling with the batch."""
    for name, frozen, rate, batch, epochs, warmup, decay, dropout in (
        ("ucf101", False, 0.025, 64, 200, 0, 0, 0.8),
        ("hmdb51", False, 0.025, 64, 200, 0, 0, 0.8),
        ("linear_k400", True, 4.0, 512, 60, 8, 0, 0),
        ("linear_k200", True, 4.0, 512, 60, 8, 0, 0),
        ("supervised_k200", False, 1.6, 1024, 200, 34, 1e-4, 0),
    ):
        cfg = compose_finetune(f"recipe={name}", "backbone=r3d18", "train=x", "test=x", *CLIP)
        assert (cfg.model.frozen, cfg.model.dropout, cfg.optim.name.value) == (frozen, dropout, "sgd")
        assert (cfg.optim.batch, cfg.optim.epochs, cfg.optim.warmup_epochs) == (batch, epochs, warmup)
        assert (cfg.optim.lr, cfg.optim.weight_decay) == (pytest.approx(rate), decay)
        assert (cfg.testing.clips_per_video, cfg.testing.num_crops) == (10, 3)
        view = cfg.augment.view
        colours = (view.jitter_probability, view.gray_probability, view.blur_probability, view.flip_probability)
        assert colours == ((0, 0, 0, 0.5) if frozen else (0.8, 0.2, 0, 0.5))
        if not frozen:
            assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetune_recipe_trains_and_tests(name: str, videos: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.csv"
    few.write_text("\n".join((videos / "train.csv").read_text().splitlines()[:9]) + "\n")
    overrides = ["optim.batch=4", "optim.epochs=1", "optim.warmup_epochs=0", "system.workers=0", *CLIP]
    overrides += ["testing.clips_per_video=1", "augment.short_side_min=40", "augment.short_side_max=48"]
    lists = [f"train={few}", f"test={few}", f"root={videos}", f"out={tmp_path / 'run'}"]
    result = finetune(compose_finetune(f"recipe={name}", "backbone=tiny3d", *lists, *overrides))[0]
    assert (result["test"]["scored"], result["step"]) == (8, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("demo", "image_demo", *IMAGES)])
def test_recipe_takes_two_steps_with_its_real_network(name: str, videos: Path, tmp_path: Path) -> None:
    overrides = ["augment.size=32", "optim.batch=4", "optim.epochs=1", "optim.warmup_epochs=0", "sce.queue=16"]
    overrides += ["system.workers=0", "system.log_every=1", "optim.precision=fp32", "data.clip_seconds=1.0"]
    overrides += ["augment.view1.blur_kernel=9", "augment.view2.blur_kernel=9"]
    few = tmp_path / "few.csv"
    few.write_text("\n".join((videos / "train.csv").read_text().splitlines()[:9]) + "\n")
    result = run_tool(
        "pretrain", f"recipe={name}", f"data.train={few}", f"data.root={videos}", "out=run", *overrides, cwd=tmp_path, timeout=280
    )
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "run")) == 2


def test_every_folder_of_configs_is_installed() -> None:
    """setup.py lists packages explicitly, so a new folder of recipes could be missing in the wheel."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert (path.parent / "__init__.py").is_file(), path.parent


def test_recipes_are_found_in_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """As on a machine that only got the files: no editable install finds `configs` for the package."""
    for name in ("sce_video", "configs", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import runpy, sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
        f"sys.path = [{str(tmp_path / 'tools')!r}, {str(tmp_path)!r}, "
        f"*(p for p in sys.path if 'editable' not in p and p != {str(ROOT)!r})]; "
        f"sys.argv[0] = {str(tmp_path / 'tools/pretrain.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-c", code, "--cfg", "job"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert said.returncode == 0, said.stderr
    assert "name: demo" in said.stdout
