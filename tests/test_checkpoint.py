"""At every instant there is a whole checkpoint, and a damaged one is never loaded."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import sce_video
from sce_video.errors import InputError, Stopped
from sce_video.models import backbones
from sce_video.models.encoder import Classifier
from sce_video.runs import checkpoint
from sce_video.runs.background_save import Saver
from sce_video.weights import read as read_weights


def state(value: float) -> checkpoint.State:
    return {"method": {"online.backbone.blocks.0.weight": torch.full((64, 64), value)}, "step": 3, "scaler": {}}


def test_newest_is_loaded_and_old_ones_are_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 10, 9):
        checkpoint.save(tmp_path, step, state(step), {"note": step}, keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000010", "step_00000009"]
    loaded, meta = checkpoint.load_newest(tmp_path)
    assert meta["step"] == meta["note"] == 10
    assert checkpoint.state_digest(loaded) == checkpoint.state_digest(state(10))
    assert checkpoint.load_newest(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["bit", "half", "empty", "no_meta"])
def test_damaged_checkpoint_is_named_and_passed_over(damage: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), {}, keep=9)
    newest = checkpoint.save(tmp_path, 2, state(2), {}, keep=9)
    content = bytearray((newest / "state.pt").read_bytes())
    if damage == "bit":
        content[len(content) // 2] ^= 1
        (newest / "state.pt").write_bytes(content)
        torch.load(newest / "state.pt", weights_only=True)  # torch itself does not notice
    elif damage == "no_meta":
        (newest / "meta.json").unlink()
    else:
        (newest / "state.pt").write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    said: list[str] = []
    loaded, _ = checkpoint.load_newest(tmp_path, report=said.append)
    assert checkpoint.state_digest(loaded) == checkpoint.state_digest(state(1))
    assert len(said) == 1
    assert "step_00000002 is damaged" in said[0]


@pytest.mark.slow
def test_no_flipped_bit_of_the_meta_data_is_accepted(tmp_path: Path) -> None:
    meta = {"version": "0.1.0", "videos": 24, "encoder": {"backbone": "r3d18", "mean": 0.45}, "updates": {"skipped": 0}}
    path = checkpoint.save(tmp_path, 1, state(1), meta, keep=1) / "meta.json"
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="is damaged"):
            checkpoint.load(path.parent)
    path.write_bytes(content)
    assert checkpoint.load(path.parent)[1]["videos"] == 24


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ('{"format_version": 1}', "is damaged"),
        ('{"format_version": 1, "step": "2", "sha256": "%"}', "holds other things than a checkpoint's"),
        ('{"format_version": 1, "step": 2, "sha256": "%", "encoder": []}', "holds other things than a checkpoint's"),
        ('{"format_version": 1, "step": 2, "sha256": "%"}', "meta.json has no updates"),
        ('{"format_version": 2, "step": 2, "sha256": "%", "updates": {}}', "meta.json does not match its digest"),
    ],
)
def test_meta_data_with_unexpected_content_gives_way_to_the_older_checkpoint(text: str, words: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, state(1), {"updates": {}}, keep=9)
    newest = checkpoint.save(tmp_path, 2, state(2), {"updates": {}}, keep=9)
    (newest / "meta.json").write_text(text.replace("%", checkpoint.file_digest(newest / "state.pt")))
    said: list[str] = []
    loaded, meta = checkpoint.load_newest(tmp_path, report=said.append, needed=["updates"])
    assert meta["step"] == 1
    assert words in said[0]


def test_checkpoint_written_before_meta_data_had_a_digest_still_loads(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, state(1), {"updates": {}}, keep=9) / "meta.json"
    meta = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256_of_meta"}
    path.write_text(json.dumps({**meta, "format_version": 1}, indent=2))
    loaded, found = checkpoint.load_newest(tmp_path)
    assert found["step"] == 1
    assert checkpoint.state_digest(loaded) == checkpoint.state_digest(state(1))


def test_checkpoint_of_a_later_version_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, state(1), {}, keep=9)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 3)
    checkpoint.save(tmp_path, 2, state(2), {}, keep=9)
    monkeypatch.undo()
    with pytest.raises(InputError, match="step_00000002 has format 3, this version reads up to 2: update sce_video"):
        checkpoint.load_newest(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_state_that_is_not_finite_is_not_saved(value: float, tmp_path: Path) -> None:
    good = {"method": {"w": torch.zeros(2), "mask": torch.full((2,), -torch.inf), "count": torch.tensor(3)}}
    bad = {"method": {**good["method"], "norm.running_var": torch.tensor([1.0, value])}}
    with Saver(keep=1, keep_every=0, report=print) as saver:
        saver.save(tmp_path, 1, good, {})
        saver.save(tmp_path, 2, bad, {})
        with pytest.raises(Stopped, match=r"after step 2, 1 tensors are not finite, e\.g\. method/norm\.running_var: training"):
            saver.finish()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step_00000001"]
    checkpoint.save(tmp_path, 3, bad, {}, keep=9)  # as versions before did
    said: list[str] = []
    assert checkpoint.load_newest(tmp_path, report=said.append)[1]["step"] == 1
    assert "1 tensors that are not finite, e.g. method/norm.running_var" in said[0]


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    weights = backbones.build("tiny3d")[0].state_dict()
    weights["blocks.2.0.weight"][0] = float("nan")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: 1 of 24 weights and statistics are not finite, e\.g\. blocks\.2\.0\.weight"):
        sce_video.load_encoder(tmp_path / "w.pt", "tiny3d")


@pytest.mark.parametrize("load", [sce_video.load_encoder, sce_video.load_classifier])
def test_run_folder_does_not_choose_what_is_imported(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of its meta data is code that opening the folder would run."""
    (tmp_path / "trap_module.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'marker')!r}).touch()\n"
        "from sce_video.models.backbones import build as ours\ndef build():\n    return ours('tiny3d')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trap_module", raising=False)
    network, width = backbones.build("tiny3d")
    online = {f"online.backbone.{key}": value for key, value in network.state_dict().items()}
    meta: dict[str, Any] = {
        "backbone": "trap_module:build",
        "mean": 0.5,
        "std": 0.5,
        "num_frames": 4,
        "clip_seconds": 1,
        "size": 32,
    }
    method = online
    if load is sce_video.load_classifier:
        method = Classifier(network, width, 2, dropout=0.0).state_dict()
    checkpoint.save(tmp_path / "run/checkpoints", 1, {"method": method}, {"encoder": meta, "classes": ["a", "b"]}, keep=1)
    with pytest.raises(InputError, match="run is for 'trap_module:build', which is not ours: if you trust it, add trust=true"):
        load(tmp_path / "run")
    assert not (tmp_path / "marker").exists()
    load(tmp_path / "run", trust=True)
    assert (tmp_path / "marker").exists()


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    (checkpoint.save(tmp_path, 1, state(1), {}, keep=9) / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match="all 1 checkpoints in .* are damaged"):
        checkpoint.load_newest(tmp_path, report=lambda _: None)


def test_digest_tells_states_apart() -> None:
    base = {"a": {"w": torch.zeros(2), "n": 1}, "l": [torch.ones(1)]}
    same = {"l": [torch.ones(1)], "a": {"n": 1, "w": torch.zeros(2)}}
    assert checkpoint.state_digest(base) == checkpoint.state_digest(same)
    for other in (
        {**base, "l": [torch.zeros(1)]},
        {**base, "a": {"w": torch.zeros(2), "n": 2}},
        {**base, "a": {"w": torch.zeros(2, dtype=torch.float64), "n": 1}},
        {**base, "a": {"w": torch.zeros(1, 2), "n": 1}},
    ):
        assert checkpoint.state_digest(other) != checkpoint.state_digest(base)


@pytest.mark.parametrize("prefix", ["", "trunk.model.", "model.", "online.backbone."])
@pytest.mark.parametrize("wrapper", [None, "state_dict"])
def test_backbones_are_read_from_known_layouts(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    network, width = backbones.build("tiny3d")
    weights = {prefix + key: value for key, value in network.state_dict().items()}
    weights["momentum_trunk.model.blocks.1.0.weight"] = torch.zeros(1)
    weights["projector.layers.0.weight"] = torch.zeros(1)
    torch.save({wrapper: weights} if wrapper else weights, tmp_path / "w.pt")
    backbone = read_weights.read_backbone(tmp_path / "w.pt")
    for key, value in network.state_dict().items():
        assert torch.equal(backbone[key], value)
    encoder = sce_video.load_encoder(tmp_path / "w.pt", backbone="tiny3d")
    clips = torch.randint(256, (2, 3, 8, 40, 40), dtype=torch.uint8)
    expected = network.eval()((clips.float() / 255 - 0.45) / 0.225)
    assert torch.allclose(encoder(clips), expected)
    assert encoder(clips).shape == (2, width)


@pytest.mark.parametrize("suffix", ["pt", "pyth", "safetensors"])
def test_every_file_format_gives_the_same_backbone(suffix: str, tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file

    network, _ = backbones.build("tiny3d")
    state, path = network.state_dict(), tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"model_state": state}, path, _use_new_zipfile_serialization=suffix == "pt")
    read = read_weights.read_backbone(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_backbone_and_projector_of_a_run_and_of_the_reference(tmp_path: Path) -> None:
    online = {"online.backbone.blocks.0.weight": torch.ones(2), "online.projector.layers.0.weight": torch.zeros(2)}
    target = {"target.projector.layers.0.weight": torch.ones(3), "queue.keys": torch.ones(2)}
    checkpoint.save(tmp_path / "run/checkpoints", 1, {"method": {**target, **online}, "step": 1}, {}, keep=1)
    assert list(read_weights.read_backbone(tmp_path / "run")) == ["blocks.0.weight"]
    projector = read_weights.read_projector(tmp_path / "run")
    assert projector is not None
    assert torch.equal(projector["layers.0.weight"], torch.zeros(2))
    # Lightning's file with options of OmegaConf, as the reference writes it.
    state = {"momentum_projector.layers.0.weight": torch.ones(2), "projector.layers.0.weight": torch.zeros(2)}
    state["trunk.model.blocks.0.weight"] = torch.ones(1)
    torch.save({"state_dict": state, "hyper_parameters": OmegaConf.create({"a": [1]})}, tmp_path / "last.ckpt")
    assert list(read_weights.read_backbone(tmp_path / "last.ckpt")) == ["blocks.0.weight"]
    projector = read_weights.read_projector(tmp_path / "last.ckpt")
    assert projector is not None
    assert torch.equal(projector["layers.0.weight"], torch.zeros(2))
    torch.save({"blocks.0.weight": torch.ones(1)}, tmp_path / "alone.pt")
    assert read_weights.read_projector(tmp_path / "alone.pt") is None


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="not a weight file"):
        read_weights.read_backbone(tmp_path / "text.pt")

    torch.save({"w": Evil(tmp_path / "marker")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not a weight file that can be read safely"):
        read_weights.read_backbone(tmp_path / "evil.pt")
    assert not (tmp_path / "marker").exists()

    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="no backbone in .*its keys begin with \\['fc'\\]"):
        read_weights.read_backbone(tmp_path / "other.pt")
    with pytest.raises(InputError, match="no checkpoint in"):
        read_weights.read_backbone(tmp_path / "nothing")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_half_filled_backbone_is_refused(tmp_path: Path) -> None:
    network, _ = backbones.build("tiny3d")
    weights = {key: value for key, value in network.state_dict().items() if "blocks.4" not in key}
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(InputError, match="fills 18 of 24 tensors of tiny3d; missing e.g. blocks.4"):
        sce_video.load_encoder(tmp_path / "w.pt", backbone="tiny3d")
    with pytest.raises(InputError, match="say which network it is for"):
        sce_video.load_encoder(tmp_path / "w.pt")


def test_meta_is_readable_by_people(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 5, state(1), {"encoder": {"backbone": "r3d18"}}, keep=1)
    meta = json.loads((path / "meta.json").read_text())
    assert meta["step"] == 5
    assert meta["encoder"]["backbone"] == "r3d18"
    assert meta["sha256"] == checkpoint.file_digest(path / "state.pt")
