"""Networks of pytorchvideo and torchvision: published figures and files, and two steps of SCE with every backbone."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from conftest import randomise
from torch import nn

import sce_video
from sce_video.methods.sce import SCE
from sce_video.models import backbones, published
from sce_video.models.encoder import MLP, Encoder
from sce_video.models.recompute import recompute_stages
from sce_video.training import optim
from sce_video.weights import layouts

CLIPS = torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def bottlenecks(depths: tuple[int, ...], temporal: tuple[int, ...]) -> int:
    """Parameters of a Slow-only ResNet by its description: (1, 7, 7) stem, expansion 4, a shortcut where a stage begins."""
    total, fan_in = 3 * 64 * 49 + 2 * 64, 64
    for depth, inner, kernel in zip(depths, (64, 128, 256, 512), temporal, strict=True):
        out = 4 * inner
        for block in range(depth):
            total += fan_in * inner * kernel + 2 * inner + inner * inner * 9 + 2 * inner + inner * out + 2 * out
            total += fan_in * out + 2 * out if block == 0 else 0
            fan_in = out
    return total


# Millions of parameters with a classifier of 400 classes: pytorchvideo's model zoo. X3D's head has two layers more.
ZOO = {"r2plus1d50": 28.11, "slowfast_r50": 34.57, "r3d50": 32.45, "x3d_xs": 3.79, "x3d_s": 3.79, "x3d_m": 3.79}
META = {
    "s3d": "S3D",
    "mvit_v2_s": "MViT_V2_S",
    "swin3d_t": "Swin3D_T",
    "r2plus1d18": "R2Plus1D_18",
    "r3d18_torchvision": "R3D_18",
}


@pytest.mark.parametrize("name", [*ZOO, *META, "slow_r101", "s3dg"])
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network, width = backbones.build(name)
    if name in ZOO:
        classifier = 400 * (2048 if name.startswith("x3d") else width) + 400
        head = 192 * 432 + 2 * 432 + 432 * 2048 if name.startswith("x3d") else 0
        assert round((count(network) + classifier + head) / 1e6, 2) == pytest.approx(ZOO[name], abs=0.011)
    elif name in META:
        module = importlib.import_module("torchvision.models.video")
        known = getattr(module, f"{META[name]}_Weights").DEFAULT.meta["num_params"]
        assert count(network) + 400 * width + 400 == known
    elif name == "slow_r101":
        assert bottlenecks((3, 4, 6, 3), (1, 1, 3, 3)) == 31_634_496
        assert count(network) == bottlenecks((3, 4, 23, 3), (1, 1, 3, 3))
    else:
        assert (count(network), width) == (9_098_000, 1024)  # the reference implementation's


def test_gates_scale_each_channel_by_its_mean() -> None:
    from sce_video.models.published import Gate

    gate, x = Gate(3), torch.randn(2, 3, 2, 4, 4)
    shown = gate(x)
    for clip in range(2):
        for channel in range(3):
            z = gate.linear.bias[channel] + sum(gate.linear.weight[channel, c] * x[clip, c].mean() for c in range(3))
            assert torch.allclose(shown[clip, channel], x[clip, channel] / (1 + torch.exp(-z)), atol=1e-6)


@pytest.mark.parametrize(("frames", "slow"), [(32, [0, 4, 8, 13, 17, 22, 26, 31]), (8, [0, 7]), (5, [0, 4]), (1, [0])])
def test_slowfast_splits_the_clip_itself(frames: int, slow: list[int]) -> None:
    """PySlowFast's linspace from the first to the last frame."""
    network, _ = backbones.build("slowfast_r50")
    seen: list[torch.Tensor] = []
    network.eval().blocks[0].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    clips = torch.rand(1, 3, frames, 32, 32)
    with torch.no_grad():
        network(clips)
    assert torch.equal(seen[0], clips[:, :, slow])
    assert torch.equal(seen[1], clips)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO, *META])
def test_a_published_file_loads_without_its_classifier_and_gives_its_features(name: str, tmp_path: Path) -> None:
    theirs = randomise(published.published(name))
    wrapped = {"model_state": theirs.state_dict()} if name in ZOO else theirs.state_dict()
    torch.save(wrapped, tmp_path / "w.pth")
    encoder = sce_video.load_encoder(tmp_path / "w.pth")
    assert encoder.name == ("x3d_xs" if name.startswith("x3d") else name)
    clips = torch.rand(1, 3, 16, 224, 224) if name == "mvit_v2_s" else CLIPS
    x = (clips - 0.45) / 0.225
    with torch.no_grad():
        if name == "slowfast_r50":
            pathways = [x[:, :, [0, 7]], x]
            for block in theirs.blocks[:5]:
                pathways = block(pathways)
            expected = torch.cat([pathway.mean((2, 3, 4)) for pathway in pathways], 1)
        elif name in ZOO:
            for block in theirs.blocks[:5]:
                x = block(x)
            expected = x.mean((2, 3, 4))
        elif name == "s3d":
            expected = theirs.features(x).mean((2, 3, 4))
        else:
            setattr(theirs, "head" if hasattr(theirs, "head") else "fc", nn.Identity())
            expected = theirs(x)
        assert torch.allclose(encoder(clips), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_two_steps_of_sce_train_every_parameter(name: str) -> None:
    """DDP waits for a parameter without a gradient; recomputed stages give the same gradients."""
    torch.manual_seed(0)
    network, width = backbones.build(name)
    clips = CLIPS[:, :, :1] if name in backbones.IMAGE_BACKBONES else CLIPS
    online = Encoder(network, MLP([width, 16, 16, 8], last_norm=True), MLP([8, 16, 8], last_norm=False))
    method = SCE(online, queue_size=16, width=8, temp=0.1, temp_target=0.05, coeff=0.5, momentum=0.9)
    groups = optim.without_decay_on_vectors(method.parameters(), 1e-6)
    optimizer = optim.build("lars", groups, lr=0.1, momentum=0.9, trust_coefficient=0.001)
    losses, gradients, before = [], [], dict[str, torch.Tensor]()
    for step in range(3):
        if step == 2:  # the second step's state again, recomputed
            method.load_state_dict(before)
            optimizer.zero_grad()
            recompute_stages(network)
        before = {key: value.clone() for key, value in method.state_dict().items()}
        found = method([clips, clips.flip(0) * 0.9], None, 0.0)  # type: ignore[arg-type]
        found.loss.backward()
        missing = [key for key, value in method.named_parameters() if value.requires_grad and value.grad is None]
        assert not missing
        losses.append(found.loss.item())
        gradients.append(next(iter(network.parameters())).grad.clone())
        if step == 0:
            optimizer.step()
            optimizer.zero_grad()
            method.after_step(found.keys, 0.0)
    assert losses[1] == losses[2] != losses[0]
    assert torch.allclose(gradients[1], gradients[2], rtol=1e-4, atol=1e-7)


def test_names_of_torchvisions_files_say_which_family_it_is() -> None:
    for name, layout in (("mvit_v2_s", "mvit"), ("swin3d_t", "swin3d"), ("s3d", "s3d")):
        with torch.device("meta"):
            state = published.published(name).state_dict()
        found = layouts.to_backbone(state)
        assert found is not None
        assert found.layout == layout
        assert len(found.ignored) == 2
