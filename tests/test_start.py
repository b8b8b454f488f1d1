"""Recipes of the user's own, and the caches: what is written, listed and removed, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_tool
from start.caches import clear_cache, list_cache
from start.new_recipe import write_recipe

from sce_video.command_line import compose_options
from sce_video.config.finetune import FinetuneConfig
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError

RECIPES = sorted(path.stem for path in (ROOT / "configs/pretrain/recipe").glob("*.yaml"))


@pytest.mark.parametrize("original", RECIPES)
def test_a_new_recipe_is_the_original_under_another_name(original: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe("pretrain", ["--new-recipe", "mine", f"recipe={original}"])
    ours = yaml.safe_load((ROOT / f"configs/pretrain/recipe/{original}.yaml").read_text())
    mine = yaml.safe_load((tmp_path / "my_recipes/recipe/mine.yaml").read_text())
    assert mine == {**ours, "name": "mine"}
    cfg = compose_options("pretrain", PretrainConfig, ["--config-dir", "my_recipes", "recipe=mine", "data.train=x"])
    assert cfg.name == "mine"


def test_a_new_recipe_of_finetuning_is_used_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe("finetune", ["--new-recipe=mine", "recipe=ucf101"])
    command = capsys.readouterr().out.partition("tools/finetune.py ")[2].split()
    assert compose_options("finetune", FinetuneConfig, command).name == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--new-recipe"], "needs one name"),
        (["--new-recipe", "../x"], "needs one name"),
        (["--new-recipe", "a", "b"], "needs one name"),
        (["--new-recipe", "demo"], "'demo' is there already"),
        (["--new-recipe", "mine", "recipe=demmo"], "recipe 'demmo' is not one of demo"),
        (["--new-recipe", "taken"], "taken.yaml' is there already"),
    ],
)
def test_a_new_recipe_never_replaces_a_file(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_recipes/recipe").mkdir(parents=True)
    (tmp_path / "my_recipes/recipe/taken.yaml").write_text("mine")
    with pytest.raises(InputError) as caught:
        write_recipe("pretrain", arguments)
    assert message in str(caught.value)
    assert [path.read_text() for path in tmp_path.rglob("*.yaml")] == ["mine"]


def test_the_cache_is_listed_and_cleared_entry_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCE_VIDEO_CACHE", str(tmp_path / "cache"))
    assert list_cache()[-1].startswith("       0.0 MB  in ")
    for name, size in (("features/tiny3d_1", 2_000_000), ("synthetic_v1/train", 3_000_000), ("of_others", 7)):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "file").write_bytes(bytes(size))
    assert [line.split()[0] for line in list_cache()] == ["2.0", "3.0", "5.0"]
    with pytest.raises(InputError, match="'tiny3d_1' is not in the cache: features/tiny3d_1, synthetic_v1, all"):
        clear_cache("tiny3d_1")
    assert clear_cache("features/tiny3d_1") == ["removed features/tiny3d_1, 2.0 MB"]
    assert clear_cache("all") == ["removed synthetic_v1, 3.0 MB"]
    assert (tmp_path / "cache/of_others/file").exists(), "what is not ours stays"


@pytest.mark.slow
def test_the_flags_work_as_programs(tmp_path: Path) -> None:
    made = run_tool("pretrain", "--new-recipe", "mine", cwd=tmp_path)
    assert (made.returncode, made.stderr) == (0, "")
    refused = run_tool("pretrain", "--new-recipe", "mine", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (70, 1)
    shown = run_tool("checkpoint", "cache", cwd=tmp_path)
    assert "SCE_VIDEO_CACHE=FOLDER moves all of it" in shown.stdout
