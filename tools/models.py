"""List the backbones: parameters, cost of a clip, width and strides of the features, training memory and speed on this machine.

python tools/models.py
python tools/models.py r3d18 x3d_m --frames 16 --size 112
python tools/models.py examples/backbone.py:build --threads 2
python tools/models.py r3d50 --device cuda --precision bf16

GFLOPs count a multiply-add once, as papers do, by fvcore's counters. Memory is what one training clip adds to a step (the
tensors kept for the backward pass, float32). clips/s are forward passes for features, without decoding. Where a clip is too
short or small for a network, the row has dashes.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from sce_video.command_line import errors_as_exit_codes
from sce_video.errors import ArgumentParser, InputError
from sce_video.evaluation.views import AUTOCAST
from sce_video.models import backbones
from sce_video.training.memory import LiveMemory

with warnings.catch_warnings():  # raised by its import
    warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
    from fvcore.nn import FlopCountAnalysis, parameter_count

COLUMNS = f"{'name':<20}{'parameters':>12}{'GFLOPs':>9}{'width':>7}{'stride t':>10}{'stride s':>10}{'MB/clip':>10}{'clips/s':>10}"
REPEATS = 3


def count_flops(network: nn.Module, clip: Tensor) -> int:
    """Return the multiply-adds of one clip [1, 3, T, S, S], by fvcore's counters (batch norms and pooling are small)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that it fixes
        counted = FlopCountAnalysis(network, clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(counted.total())


def find_strides(network: nn.Module, clip: Tensor, width: int) -> tuple[str, str]:
    """Return the strides in time and space of the last feature map; of both pathways where there are two."""
    found: list[list[tuple[float, float]]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        frames, side = clip.shape[2], clip.shape[-1]
        if isinstance(output, tuple) and isinstance(output[1], tuple):  # MViT: tokens, (t, h, w)
            output = [torch.empty(1, width, *output[1], device="meta")]
        maps = output if isinstance(output, list) else [output]
        if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)):
            return
        maps = [x[:, :, None] if isinstance(x, Tensor) and x.ndim == 4 else x for x in maps]  # of an image
        maps = [x for x in maps if isinstance(x, Tensor) and x.ndim == 5]
        maps = [x.permute(0, 4, 1, 2, 3) if x.shape[1] != width == x.shape[-1] else x for x in maps]  # Swin: channels last
        if maps and all(x.shape[2:].numel() > 1 or frames == 1 for x in maps):  # else it is pooled
            found.append([(frames / x.shape[2], side / x.shape[3]) for x in maps])

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    with torch.no_grad():
        network(clip)
    for hook in hooks:
        hook.remove()
    if not found:
        return "-", "-"
    times, sides = zip(*found[-1], strict=True)
    return ", ".join(f"{value:g}" for value in times), f"{sides[0]:g}"


def count_memory(network: nn.Module, clips: Tensor) -> float:
    """Return the bytes that each clip of a training batch adds at its peak; network and clips are on the meta device."""

    def peak(batch: Tensor) -> int:
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        with LiveMemory("meta") as memory:
            network.train()(batch).sum().backward()
        return memory.peak

    return (peak(torch.cat([clips, clips])) - peak(clips)) / len(clips)


@torch.no_grad()
def measure_speed(network: nn.Module, clips: Tensor, precision: str) -> float:
    """Return clips per second of the best of some forward passes."""
    device, seconds, dtype = clips.device.type, [], AUTOCAST[precision]
    for _ in range(REPEATS + 1):  # the first is not counted
        begun = time.perf_counter()
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            network(clips)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return len(clips) / min(seconds[1:])


def describe(name: str, options: argparse.Namespace) -> str:
    """Return the row of a backbone."""
    network, width = backbones.build(name)
    network.eval()
    row = f"{name:<20}{parameter_count(network)['']:>12,}"
    frames = 1 if name in backbones.IMAGE_BACKBONES else options.frames
    clip = torch.zeros(1, 3, frames, options.size, options.size)
    try:
        flops = count_flops(network, clip)
    except RuntimeError:
        return f"{row}{'-':>9}{width:>7}{'-':>10}{'-':>10}{'-':>10}{'-':>10}   a larger clip is needed"
    on_device, clips = network.to(options.device), clip.to(options.device).expand(options.batch, -1, -1, -1, -1).contiguous()
    speed = measure_speed(on_device, clips, options.precision)
    network, meta = network.to("meta"), torch.empty(2, *clip.shape[1:], device="meta")
    in_time, in_space = find_strides(network, meta[:1], width)
    memory = count_memory(network, meta) / 1e6
    return f"{row}{flops / 1e9:>9.2f}{width:>7}{in_time:>10}{in_space:>10}{memory:>10.0f}{speed:>10.2f}"


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here")
    if options.precision != "fp32" and options.device == "cpu":
        raise InputError(f"--precision {options.precision} needs --device cuda")
    if min(options.frames, options.size, options.batch) < 1:
        raise InputError("--frames, --size and --batch must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    size = f"{options.frames} x {options.size} x {options.size} (of image networks 1 frame)"
    print(f"clips of {size}; speed on {where}, {options.precision}")
    print(COLUMNS)
    for name in options.names or backbones.BACKBONES:
        print(describe(name, options), flush=True)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help="default: all; also module:function and file.py:function")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=1, help="clips per pass when the speed is measured")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=sorted(AUTOCAST), default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    with errors_as_exit_codes():
        main(parser.parse_args())
