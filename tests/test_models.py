"""Networks: the reference's shapes and counts, the momentum branch, the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sce_video.errors import InputError
from sce_video.models.backbones import BACKBONES, build
from sce_video.models.encoder import MLP, Encoder, FrozenEncoder
from sce_video.models.momentum import KeyQueue, ema_update, momentum_copy


@pytest.mark.parametrize("name", ["r3d18", "r3d50"])
def test_architecture_is_the_references(name: str, conformance: dict[str, Any]) -> None:
    expected = conformance["architectures"][name]
    module, width = build(name)
    assert sum(param.numel() for param in module.parameters()) == expected["params"]
    assert width == expected["output_dim"]
    assert len(module.state_dict()) == expected["num_state_keys"]
    convolutions = [[f"model.{key}", list(value.shape)] for key, value in module.state_dict().items() if value.ndim == 5]
    assert sorted(convolutions) == sorted(expected["conv_shapes"])
    zero = [p for p in module.parameters() if p.ndim == 1 and len(p) and torch.equal(p, torch.zeros_like(p))]
    biases = sum(key.endswith("bias") for key in dict(module.named_parameters()))
    assert len(zero) - biases == expected["zero_initialised_bn_gammas"]
    x, shapes = torch.zeros(1, 3, 8, 112, 112), []
    with torch.no_grad():
        for block in module.eval().blocks:
            x = block(x)
            shapes.append(list(x.shape))
    assert shapes == expected["block_output_shapes_for_1x3x8x112x112"]


def test_r2plus1d18_is_torchvisions(conformance: dict[str, Any]) -> None:
    module, width = build("r2plus1d18")
    count = sum(param.numel() for param in module.parameters())
    assert count == conformance["architectures"]["torchvision_r2plus1d_18_params_no_fc"]
    assert module.eval()(torch.zeros(1, 3, 4, 32, 32)).shape == (1, width)


@pytest.mark.parametrize(("width", "hidden", "name"), [(512, 1024, "18"), (2048, 4096, "50")])
def test_heads_are_the_references(width: int, hidden: int, name: str, conformance: dict[str, Any]) -> None:
    heads = {
        f"projector_{name}": MLP([width, hidden, hidden, 256], last_norm=True),
        f"predictor_{name}": MLP([256, hidden, 256], last_norm=False),
    }
    for key, head in heads.items():
        expected = conformance["architectures"][key]
        assert sum(param.numel() for param in head.parameters()) == expected["params"]
        assert list(head.state_dict()) == expected["keys"]


def test_tiny_network_ignores_brightness_and_contrast() -> None:
    module, width = build("tiny3d")
    clips = torch.rand(2, 3, 8, 40, 40)
    module.eval()
    assert module(clips).shape == (2, width)
    assert torch.allclose(module(clips), module(0.3 * clips + 0.2), atol=1e-2)


def test_backbone_from_ones_own_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef flat():\n    return nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten()), 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module, width = build("my_networks:flat")
    assert module(torch.zeros(2, 3, 4, 8, 8)).shape == (2, width)


@pytest.mark.parametrize("name", ["r3d19", "no_such_module:build", "torch:no_such_function"])
def test_unknown_backbone_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"backbone ?=?'?{name}"):
        build(name)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())", 3),
        ("(nn.Identity(), 3)", 3),
        ("nn.Conv3d(3, 4, 1)", r"maps clips \[1, 3, 8, 64, 64\] to \[1, 4, 8, 64, 64\]: it must pool them"),
        ("nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Linear(7, 2))", "cannot take a clip .* return \\(module, width\\)"),
        ("3", "gave int: the function must return a module, or"),
    ],
)
def test_backbone_from_ones_own_file_may_leave_out_its_width(returned: str, message: Any, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(f"from torch import nn\ndef net():\n    return {returned}\n")
    if isinstance(message, int):
        assert build(f"{tmp_path}/nets.py:net")[1] == message
        return
    with pytest.raises(InputError, match=message):
        build(f"{tmp_path}/nets.py:net")


def test_table_of_backbones_tells_the_truth() -> None:
    from sce_video.models import backbones

    for name in BACKBONES:
        with torch.device("meta"):
            module, width = build(name)
        row = next(line for line in (backbones.__doc__ or "").splitlines() if line.startswith(f"| {name} "))
        assert f"{sum(param.numel() for param in module.parameters()):,}" in row
        assert f" {width} |" in row


def encoder() -> Encoder:
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6))
    return Encoder(backbone, MLP([6, 8, 4], last_norm=True), MLP([4, 8, 4], last_norm=False))


def test_encoder_gives_unit_rows_in_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = encoder()(torch.randn(5, 3, 1, 2, 2))
    assert rows.dtype == torch.float32
    assert torch.allclose(rows.norm(dim=1), torch.ones(5))


def test_ema_moves_parameters_and_not_buffers() -> None:
    online = encoder()
    target = momentum_copy(Encoder(online.backbone, online.projector))
    before = {key: value.clone() for key, value in target.state_dict().items()}
    for param in online.parameters():
        nn.init.ones_(param)
    online.backbone[2].running_mean.fill_(7.0)
    ema_update(target, online, 0.75)
    parameters = dict(target.named_parameters())
    for key, value in target.state_dict().items():
        expected = 0.75 * before[key] + 0.25 if key in parameters else before[key]
        assert torch.allclose(value.float(), expected.float()), key
    assert not any(param.requires_grad for param in target.parameters())


def test_ema_is_the_loop_over_parameters_to_the_bit() -> None:
    online = encoder()
    target = momentum_copy(Encoder(online.backbone, online.projector))
    looped = momentum_copy(target)
    for step in range(3):
        for param in online.parameters():
            nn.init.normal_(param)
        ema_update(target, online, 0.9 + 0.01 * step)
        source = dict(online.named_parameters())
        for name, param in looped.named_parameters():
            param.lerp_(source[name], 1.0 - (0.9 + 0.01 * step))
    for ours, expected in zip(target.parameters(), looped.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_queue_is_first_in_first_out_and_wraps_around() -> None:
    queue = KeyQueue(5, 2)
    assert torch.allclose(queue.keys.norm(dim=1), torch.ones(5))
    pushed = torch.arange(14.0).view(7, 2)
    queue.push(pushed[:3])
    queue.push(pushed[3:])
    assert queue.keys.tolist() == [pushed[5].tolist(), pushed[6].tolist(), *pushed[2:5].tolist()]
    assert queue.pointer == 2


def test_queue_refuses_more_than_it_holds() -> None:
    with pytest.raises(ValueError, match="holds 5 keys and cannot take 6"):
        KeyQueue(5, 2).push(torch.zeros(6, 2))


def test_frozen_encoder_takes_uint8_and_float_alike() -> None:
    backbone = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
    frozen = FrozenEncoder(backbone, "mean", mean=0.45, std=0.225, clip={})
    clips = torch.randint(256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    assert torch.allclose(frozen(clips), frozen(clips.float() / 255))
    assert torch.allclose(frozen(torch.full((1, 3, 1, 2, 2), 0.45)), torch.zeros(1, 3), atol=1e-6)
