"""Key names of other programs, compared to lists written from their rules and to networks with their names."""

from __future__ import annotations

import pytest
import torch
from conftest import randomise
from torch import Tensor, nn

from sce_video.models import backbones, published
from sce_video.weights import layouts

CLIPS = torch.rand(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def slowfast_names(depths: tuple[int, ...], letters: str, shortcuts: tuple[int, ...]) -> set[str]:
    """SlowFast's rules: s1.pathway0_stem.{conv,bn}; s{stage}.pathway0_res{i}.{branch1,branch2.x}, each with its _bn."""
    names = {"s1.pathway0_stem.conv.weight", *(f"s1.pathway0_stem.bn.{end}" for end in NORM)}
    for stage, depth in zip((2, 3, 4, 5), depths, strict=True):
        for i in range(depth):
            block = f"s{stage}.pathway0_res{i}."
            convolutions = [f"{block}branch2.{letter}" for letter in letters]
            if i == 0 and stage in shortcuts:
                convolutions.append(f"{block}branch1")
            for name in convolutions:
                names |= {f"{name}.weight", *(f"{name}_bn.{end}" for end in NORM)}
    return names


class SlowBlock(nn.Module):
    """SlowFast's bottleneck block by its published description: T x 1 x 1, 1 x 3 x 3 with the stride, 1 x 1 x 1."""

    def __init__(self, fan_in: int, inner: int, fan_out: int, temporal: int, stride: int) -> None:
        super().__init__()
        if fan_in != fan_out:
            self.branch1 = nn.Conv3d(fan_in, fan_out, 1, (1, stride, stride), bias=False)
            self.branch1_bn = nn.BatchNorm3d(fan_out)
        self.branch2 = nn.ModuleDict(
            {
                "a": nn.Conv3d(fan_in, inner, (temporal, 1, 1), padding=(temporal // 2, 0, 0), bias=False),
                "a_bn": nn.BatchNorm3d(inner),
                "b": nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
                "b_bn": nn.BatchNorm3d(inner),
                "c": nn.Conv3d(inner, fan_out, 1, bias=False),
                "c_bn": nn.BatchNorm3d(fan_out),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        y, last = x, len(self.branch2) // 2 - 1
        for number, letter in enumerate("abc"):
            y = self.branch2[f"{letter}_bn"](self.branch2[letter](y))
            y = y if number == last else y.relu()
        shortcut = self.branch1_bn(self.branch1(x)) if hasattr(self, "branch1") else x
        return (shortcut + y).relu()


class SlowOnly(nn.Module):
    """SlowFast's `slow` network of depth 50 under its own names."""

    def __init__(self) -> None:
        super().__init__()
        stem = {"conv": nn.Conv3d(3, 64, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), "bn": nn.BatchNorm3d(64)}
        self.s1 = nn.ModuleDict({"pathway0_stem": nn.ModuleDict(stem)})
        fan_in = 64
        for stage, depth, inner, temporal in ((2, 3, 64, 1), (3, 4, 128, 1), (4, 6, 256, 3), (5, 3, 512, 3)):
            blocks = {}
            for i in range(depth):
                stride = 2 if i == 0 and stage > 2 else 1
                blocks[f"pathway0_res{i}"] = SlowBlock(fan_in, inner, inner * 4, temporal, stride)
                fan_in = inner * 4
            self.add_module(f"s{stage}", nn.ModuleDict(blocks))
        self.head = nn.ModuleDict({"projection": nn.Linear(2048, 400)})

    def forward(self, x: Tensor) -> Tensor:
        stem = self.s1["pathway0_stem"]
        x = nn.functional.max_pool3d(stem["bn"](stem["conv"](x)).relu(), (1, 3, 3), (1, 2, 2), (0, 1, 1))
        for stage in (self.s2, self.s3, self.s4, self.s5):
            for block in stage.values():
                x = block(x)
        return x.mean((2, 3, 4))


@pytest.fixture(scope="module")
def r3d50() -> nn.Module:
    return randomise(backbones.build("r3d50")[0])


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


def test_slowfast_names_are_those_of_its_rules(r3d50: nn.Module) -> None:
    names = layouts.from_backbone(r3d50.state_dict(), "slowfast")
    assert set(names) == slowfast_names((3, 4, 6, 3), "abc", (2, 3, 4, 5))
    assert len(names) == 318
    names = layouts.from_backbone(backbones.build("r3d18")[0].state_dict(), "slowfast")
    assert set(names) == slowfast_names((2, 2, 2, 2), "ab", (3, 4, 5))


def test_a_network_built_like_slowfasts_gives_our_features(r3d50: nn.Module) -> None:
    theirs = SlowOnly().eval()
    missing, unexpected = theirs.load_state_dict(layouts.from_backbone(r3d50.state_dict(), "slowfast"), strict=False)
    assert (missing, unexpected) == (["head.projection.weight", "head.projection.bias"], [])
    with torch.no_grad():
        expected = r3d50(CLIPS)
        assert float(expected.abs().max()) > 0.1
        assert torch.allclose(theirs(CLIPS), expected, atol=1e-6)


def test_slowfasts_files_give_its_features(r3d50: nn.Module) -> None:
    """Also its contrastive files, whose momentum branch is ignored."""
    theirs, momentum = randomise(SlowOnly(), seed=3), randomise(SlowOnly(), seed=4)
    plain = theirs.state_dict()
    contrastive = {f"backbone_hist.{key}": value for key, value in momentum.state_dict().items()}
    contrastive |= {f"backbone.{key}": value for key, value in plain.items()} | {"queue_x": torch.zeros(3)}
    for state, prefix in ((plain, ""), (contrastive, "backbone.")):
        found = layouts.to_backbone(layouts.unwrap({"epoch": 3, "model_state": state, "cfg": "text"}))
        assert found is not None
        assert (found.layout, found.prefix) == ("slowfast", prefix)
        assert set(found.ignored) == {key for key in state if f"{prefix}s" != key[: len(prefix) + 1]}
        assert len(found.backbone) == 318
        network, _ = backbones.build("r3d50")
        network.load_state_dict(found.backbone)
        with torch.no_grad():
            assert torch.allclose(network.eval()(CLIPS), theirs(CLIPS), atol=1e-6)


@pytest.mark.parametrize("name", ["r3d18", "r3d50"])
@pytest.mark.parametrize("layout", ["slowfast", "pytorchvideo", "sce_video"])
def test_there_and_back_is_the_same(name: str, layout: str) -> None:
    state = randomise(backbones.build(name)[0]).state_dict()
    found = layouts.to_backbone(layouts.from_backbone(state, layout))
    assert found is not None
    assert found.layout == layout
    assert equal(found.backbone, state)
    assert found.ignored == []


@pytest.mark.parametrize("name", ["r2plus1d18", "r3d18_torchvision"])
def test_torchvisions_files_give_its_features(name: str) -> None:
    theirs = randomise(published.published(name))
    found = layouts.to_backbone(layouts.unwrap(theirs.state_dict()))
    assert found is not None
    assert (found.layout, found.ignored) == ("torchvision", ["fc.weight", "fc.bias"])
    ours, _ = backbones.build(name)
    ours.load_state_dict(found.backbone)
    theirs.fc = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(ours.eval()(CLIPS), theirs(CLIPS), atol=1e-6)
    assert equal(layouts.from_backbone(found.backbone, "torchvision"), found.backbone)


def test_pytorchvideos_hub_file_gives_its_features() -> None:
    backbones.build("r3d50")  # imports pytorchvideo without its warnings
    from pytorchvideo.models.resnet import create_resnet

    theirs = randomise(create_resnet(model_depth=50, stem_conv_kernel_size=(1, 7, 7), model_num_class=10))
    found = layouts.to_backbone(layouts.unwrap({"model_state": theirs.state_dict()}))
    assert found is not None
    assert (found.layout, found.ignored) == ("pytorchvideo", ["blocks.5.proj.weight", "blocks.5.proj.bias"])
    ours, _ = backbones.build("r3d50")
    ours.load_state_dict(found.backbone)
    x = CLIPS
    with torch.no_grad():
        for block in theirs.blocks[:5]:
            x = block(x)
        assert torch.allclose(ours.eval()(CLIPS), x.mean((2, 3, 4)), atol=1e-6)


def test_the_references_online_trunk_is_taken() -> None:
    """eztorch's Lightning files: online and momentum trunk, heads, queue, and buffers of the transforms."""
    online, momentum = (randomise(backbones.build("r3d18")[0], seed).state_dict() for seed in (0, 1))
    state = {f"momentum_trunk.model.{key}": value for key, value in momentum.items()}
    state |= {f"trunk.model.{key}": value for key, value in online.items()}
    others = ["projector.layers.0.weight", "momentum_projector.layers.0.weight", "predictor.layers.0.weight", "queue"]
    others += ["queue_ptr", "train_transform.transforms.0.transforms.1.brightness"]
    state |= {name: torch.full((2,), float(number)) for number, name in enumerate(others)}
    tensors = layouts.unwrap({"epoch": 1, "state_dict": state})
    found = layouts.to_backbone(tensors)
    assert found is not None
    assert equal(found.backbone, online)
    assert set(found.ignored) == {*others, *(f"momentum_trunk.model.{key}" for key in momentum)}
    projector = layouts.to_projector(tensors)
    assert projector is not None
    assert {key: value.tolist() for key, value in projector.items()} == {"layers.0.weight": [0.0, 0.0]}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state", "method"])
@pytest.mark.parametrize("module", ["", "module."])
@pytest.mark.parametrize("prefix", ["", "model.", "trunk.model.", "backbone.", "online.backbone."])
def test_wrappers_and_prefixes_come_off(wrapper: str | None, module: str, prefix: str) -> None:
    state = backbones.build("tiny3d")[0].state_dict()
    file = {module + prefix + key: value for key, value in state.items()}
    found = layouts.to_backbone(layouts.unwrap({wrapper: file, "epoch": 1} if wrapper else file))
    assert found is not None
    assert found.prefix == prefix
    assert equal(found.backbone, state)


def test_what_has_no_place_is_not_dropped() -> None:
    """A two-pathway SlowFast network must not load as its slow pathway."""
    state = {"s1.pathway0_stem.conv.weight": torch.zeros(1), "s1.pathway1_stem.conv.weight": torch.zeros(1)}
    found = layouts.to_backbone(state)
    assert found is not None
    assert list(found.backbone) == ["blocks.0.conv.weight", "s1.pathway1_stem.conv.weight"]
    for nothing in ({}, {"fc.weight": torch.zeros(1)}, {"momentum_trunk.model.blocks.0.conv.weight": torch.zeros(1)}):
        assert layouts.to_backbone(nothing) is None
        assert layouts.to_projector(nothing) is None
    for nothing in (None, [1], {"state_dict": {"a": 1}}, {1: torch.zeros(1)}):
        assert layouts.unwrap(nothing) == {}


@pytest.mark.parametrize(
    ("name", "layout", "message"),
    [
        ("r2plus1d18", "slowfast", "the slowfast layout has no name for stem.0.weight"),
        ("tiny3d", "slowfast", "the slowfast layout has no name for blocks.1.0.weight"),
        ("tiny3d", "torchvision", "the torchvision layout has no name for blocks.1.0.weight"),
        ("r2plus1d18", "pytorchvideo", "the pytorchvideo layout has no name for stem.0.weight"),
        ("tiny3d", "caffe", "layout 'caffe' is not one of sce_video, pytorchvideo, slowfast, torchvision"),
    ],
)
def test_names_that_do_not_exist_are_refused(name: str, layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layouts.from_backbone(backbones.build(name)[0].state_dict(), layout)
