"""Compile the fused norm's kernels for an H100 without one: registers, stack, loads of 16 bytes. Needs triton and its ptxas."""

# mypy: ignore-errors

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import tempfile

import torch

from sce_video.errors import InputError

TILE = {"N": 64, "W": 64}
VALUE, WIDE = "*bf16", "*fp32"
AFFINE = {"stats": WIDE, "weight": WIDE, "bias": WIDE}
# name: kernel, types of pointers and numbers, compile-time values (None: not given), bytes per value of a bf16 tensor
CASES = {
    "statistics": ("statistics", {"x": VALUE, "parts": WIDE, "chunk_rows": "i32"}, {}, 2),
    "transform": ("transform", {"x": VALUE, "y": VALUE, **AFFINE}, {"residual": None, "EPS": 1e-5, "RELU": True}, 4),
    "transform, addition": ("transform", {"x": VALUE, "residual": VALUE, "y": VALUE, **AFFINE}, {"EPS": 1e-5, "RELU": True}, 6),
    "sums": (
        "sums",
        {"dy": VALUE, "x": VALUE, "g": VALUE, "parts": WIDE, "chunk_rows": "i32", **AFFINE},
        {"y": None, "EPS": 1e-5, "RELU": True},
        4,
    ),
    "sums, addition": (
        "sums",
        {"dy": VALUE, "x": VALUE, "y": VALUE, "g": VALUE, "parts": WIDE, "chunk_rows": "i32", **AFFINE},
        {"EPS": 1e-5, "RELU": True},
        8,
    ),
    "slope": ("slope", {"g": VALUE, "x": VALUE, "dx": VALUE, "totals": WIDE, **AFFINE}, {"EPS": 1e-5, "RELU": True}, 6),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no options."""


def run(options: argparse.Namespace) -> None:
    """Print a line per kernel."""
    try:
        triton = importlib.import_module("triton")
        kernels = importlib.import_module("sce_video.models.norm_kernels")
    except ImportError as error:
        raise InputError(f"triton cannot be imported ({error}): pip install triton") from error
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    print(f"torch {torch.__version__}, triton {triton.__version__}, sm_90, bf16, tiles of 64 x 64, 8 warps")
    for name, (kernel, types, fixed, size) in CASES.items():
        function = getattr(kernels, kernel)
        types, fixed = {**types, "rows": "i32", "C": "i32"}, {**fixed, **TILE}
        names = [parameter.name for parameter in function.params]
        aligned = {(number,): [["tt.divisibility", 16]] for number, each in enumerate(names) if each in types}
        signature = {each: types.get(each, "constexpr") for each in names}
        source = ASTSource(fn=function, signature=signature, constexprs=fixed, attrs=aligned)
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(built.asm["cubin"])
            file.flush()
            tool = triton.knobs.nvidia.cuobjdump.path
            used = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", used).groups()
        wide = len(re.findall(r"ld\.global\S*v4\.b32", built.asm["ptx"]))
        print(f"{name}: {registers} registers, stack {stack}, local {local}, {wide} loads of 16 bytes, {size} bytes a value")
