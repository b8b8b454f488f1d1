"""The fused passes equal the operations one after another, as written and compiled, one by one and all together."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sce_video import augment
from sce_video.augment import built, compilation, fused, stages
from sce_video.config.shared import Compile, System
from sce_video.data.synthetic import cache_folder
from sce_video.randomness import generator
from sce_video.training.augmenter import build

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch 2.11's own, of its compiler

SIZE, MEAN, STD = 40, 0.45, 0.225
VIEW = augment.View(gray_probability=0.3, blur_probability=0.6, solarize_probability=0.4, erase_probability=0.3)
SIZES = [(60, 81), (33, 47), (SIZE, SIZE), (100, 20), (1, 1), (5, 90), (SIZE, 77), (41, 39)]


def clips(kind: str, frames: int, count: int = 32) -> list[Tensor]:
    pixels = torch.Generator().manual_seed(0)
    sizes = [SIZES[i % len(SIZES)] for i in range(count)]
    made = [torch.randint(256, (frames, h, w, 3), generator=pixels, dtype=torch.uint8) for h, w in sizes]
    if kind == "saturated":
        made = [(clip > 127).to(torch.uint8) * 255 for clip in made]
    if kind == "constant":
        made = [clip[:1, :1, :1].expand(clip.shape).contiguous() for clip in made]
    if kind == "gray":
        made = [clip[..., :1].expand(clip.shape).contiguous() for clip in made]
    return made


def drawn(view: augment.View, count: int = 32) -> augment.Parameters:
    return augment.draw(view, [generator("fused", i) for i in range(count)])


def fused_result(
    view: augment.View, made: list[Tensor], parameters: augment.Parameters, passes: Any, together: bool, **options: Any
) -> Tensor:
    flags = options.pop("differences", [False] * len(made))
    out = torch.full((len(made), 3, len(made[0]), SIZE, SIZE), torch.nan)
    settings = fused.Settings(view, MEAN, STD, options.get("antialias", False), passes, together)
    fused.apply(made, parameters, out, flags, settings)
    augment.erase(out, parameters.erased)
    return out


def defined(view: augment.View, made: list[Tensor], parameters: augment.Parameters, **options: Any) -> Tensor:
    return augment.apply(view, made, parameters, size=SIZE, mean=MEAN, std=STD, **options)


def assert_equal(result: Tensor, expected: Tensor, *, solarized: bool = True) -> None:
    """Within 1e-5 in 0..1, hue 1e-4; where a value lies on the threshold of solarising, rounding decides its side."""
    different = (result - expected).abs() * STD > 1e-4
    assert torch.isfinite(result).all()
    assert different.double().mean() < (1e-4 if solarized else 1e-9)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["random", "saturated", "constant", "gray"])
def test_passes_equal_the_operations(kind: str, together: bool) -> None:
    for frames in (1, 2):
        made, parameters = clips(kind, frames), drawn(VIEW)
        if kind == "constant":  # a constant may lie on the threshold everywhere
            parameters = replace(parameters, solarize=torch.zeros(len(made), dtype=torch.bool))
        result = fused_result(VIEW, made, parameters, fused.eager, together)
        assert_equal(result, defined(VIEW, made, parameters))


@pytest.mark.parametrize("together", [False, True])
def test_passes_equal_the_operations_for_differences_rand_augment_and_antialiasing(together: bool) -> None:
    view = replace(VIEW, rand_augment_operations=2)
    flags = [b % 3 == 1 for b in range(32)]
    made = [
        torch.cat([clip, clip.flip(0)]) if flag else clip for clip, flag in zip(clips("random", 2), flags, strict=True)
    ]
    parameters = drawn(view)
    stepless = torch.tensor([name not in ("equalize", "posterize") for name in augment.rand_augment.OPERATIONS])
    calm = stepless[parameters.operations].all(dim=1).tolist()  # rounding decides nothing there
    for antialias in (False, True):
        options = {"differences": flags, "antialias": antialias}
        result = fused_result(view, made, parameters, fused.eager, together, **options)
        expected = defined(view, made, parameters, **options)
        assert_equal(result[calm], expected[calm])
    assert sum(calm) > 16


@pytest.mark.parametrize("together", [False, True])
def test_a_clip_does_not_depend_on_its_batch_to_the_bit(together: bool) -> None:
    made, parameters = clips("random", 2), drawn(VIEW)
    whole = fused_result(VIEW, made, parameters, fused.eager, together)
    for chosen in ([5], [31, 2, 7]):
        part = fused_result(VIEW, [made[b] for b in chosen], parameters[chosen], fused.eager, together)
        assert torch.equal(part, whole[chosen])


def test_blurs_are_computed_with_few_radii_that_suffice() -> None:
    for kernel in (3, 5, 9, 15, 17, 23):
        view = augment.View(blur_kernel=kernel)
        radii = {fused.blur_radius(view, sigma / 100) for sigma in range(10, 201)}
        assert max(radii) == kernel // 2
        assert len(radii) <= 3
        assert fused.blur_radius(view, 0.1) == min(3, kernel // 2)


HOW = {"num_frames": 2, "size": SIZE, "mean": MEAN, "std": STD, "device": torch.device("cpu")}


def only_built(function: Any, together: bool) -> Any:
    """The passes in machine code, and none other; but crops of 1 pixel have none."""

    def run(*arguments: Any) -> None:
        cropped = function in (stages.columns, stages.rows)
        assert built.described(function, arguments) in built._loaded or (cropped and 1 in arguments[0].shape[1:3])
        built.passes(function)(*arguments)

    return run


@pytest.fixture(scope="module")
def folder() -> Path:
    """Of the passes that are built, kept from test to test."""
    return cache_folder() / "passes"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_passes_equal_the_operations_are_built_ahead_and_do_not_depend_on_the_batch(folder: Path) -> None:
    view = replace(VIEW, blur_kernel=9)  # two radii instead of three
    assert compilation.prepare([view], **HOW, folder=folder) == ""
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.pt2")}
    assert len(files) == 11
    assert compilation.prepare([view], **HOW, folder=folder) == ""
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.pt2")} == files, "built once"
    for kind in ("random", "saturated", "gray"):
        made, parameters = clips(kind, 2, 48), drawn(view, 48)
        result = defined(view, made, parameters, compiled=True)
        assert_equal(result, defined(view, made, parameters))
        part = defined(view, [made[b] for b in (31, 5)], parameters[[31, 5]], compiled=True)
        assert torch.equal(part, result[[31, 5]])
        assert torch.equal(fused_result(view, made, parameters, only_built, False), result), "nothing was left to torch"
    sharp = replace(drawn(view, 8), blur=torch.zeros(8, dtype=torch.bool))
    fused_result(view, clips("random", 2, 8), sharp, only_built, False)
    tall = [torch.randint(256, (2, 3 + i, 200 - 3 * i, 3), dtype=torch.uint8) for i in range(60)]
    fused_result(view, tall, drawn(view, 60), only_built, False)
    strided = [clip.transpose(0, 1).contiguous().transpose(0, 1) for clip in clips("random", 2, 8)]
    fused_result(view, strided, drawn(view, 8), only_built, False)


WITHOUT_COMPILER = """
import sys, torch
from pathlib import Path
from sce_video import augment
from sce_video.augment import compilation
view = augment.View(gray_probability=0.3, blur_probability=0.6, solarize_probability=0.4, blur_kernel=9)
torch.set_num_threads(int(sys.argv[2]))
how = {"size": 40, "mean": 0.45, "std": 0.225}
assert compilation.prepare([view], num_frames=2, device=torch.device("cpu"), folder=Path(sys.argv[1]), **how) == ""
clips = [torch.full((2, 50, 60 + i, 3), 10 * i, dtype=torch.uint8) for i in range(16)]
drawn = augment.draw(view, [torch.Generator().manual_seed(i) for i in range(16)])
one, other = (augment.apply(view, clips, drawn, compiled=how_, **how) for how_ in (True, False))
assert not torch.equal(one, other), "rounding differs"
assert (one - other).abs().max() < 1e-3
print("torch._dynamo" in sys.modules, "torch._inductor" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_passes_that_were_built_need_no_compiler_nor_its_memory(folder: Path) -> None:
    """With other processes for the building, this one never imports torch's compiler."""
    assert compilation.prepare([replace(VIEW, blur_kernel=9)], **HOW, folder=folder) == ""
    command = [sys.executable, "-c", WITHOUT_COMPILER, str(folder), str(torch.get_num_threads())]
    environment = {**os.environ, "CXX": "/nowhere/g++", "PATH": "/nowhere"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False False\n"
    assert result.stderr == ""


def test_a_damaged_file_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    view = augment.View(jitter_probability=0, blur_probability=0)
    needs = compilation.Needs([view], 3, 17, MEAN, STD, False, "float32", False)
    for call in needs.calls():
        built.place(tmp_path, call, torch.get_num_threads()).write_bytes(b"no archive")
    how = {**HOW, "num_frames": 3, "size": 17}
    assert f"cannot load {tmp_path}" in compilation.prepare([view], **how, folder=tmp_path)
    assert not any(call in built._loaded for call in needs.calls())


def test_machine_code_is_of_its_call_torch_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list(compilation.Needs([VIEW], 3, 17, MEAN, STD, False, "float32", False).calls())
    assert len({built.place(tmp_path, call, 1) for call in calls}) == len(calls) > 8
    assert built.place(tmp_path, calls[0], 1) != built.place(tmp_path, calls[0], 2)
    before = built.place(tmp_path, calls[0], 1)
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert built.place(tmp_path, calls[0], 1) != before


def test_calls_that_nothing_was_built_for_are_computed_as_written() -> None:
    made, parameters = clips("random", 5, 4), drawn(VIEW, 4)
    assert not any("[5, " in call for call in built._loaded)
    as_written = fused_result(VIEW, made, parameters, fused.eager, False)
    assert torch.equal(fused_result(VIEW, made, parameters, fused.compiled, False), as_written)


@pytest.mark.slow
def test_passes_all_together_as_on_a_gpu_are_traced_whole_for_any_number_of_clips() -> None:
    """As far as it goes without a GPU: one graph per pass, sizes as symbols, no code generated from it."""

    @functools.cache
    def traced(function: Any) -> Any:
        return torch.compile(function, backend="aot_eager", dynamic=True, fullgraph=True)

    view = replace(VIEW, blur_kernel=9)
    made, parameters = clips("random", 2), drawn(view)
    result = fused_result(view, made, parameters, lambda function, together: traced(function), True)
    assert_equal(result, defined(view, made, parameters))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_results_come_in_other_types_and_layouts(folder: Path) -> None:
    view = replace(VIEW, blur_kernel=9)
    other = {"dtype": torch.bfloat16, "channels_last": True}
    assert compilation.prepare([view], **HOW, **other, folder=folder) == ""
    made, parameters = clips("random", 2, 8), drawn(view, 8)
    result = defined(view, made, parameters, compiled=True, dtype=torch.bfloat16, channels_last=True)
    plain = defined(view, made, parameters)
    assert result.dtype == torch.bfloat16
    assert result.is_contiguous(memory_format=torch.channels_last_3d)
    assert ((result.float() - plain).abs() > 0.02).double().mean() < 1e-4


def test_results_come_in_other_types_and_layouts() -> None:
    made, parameters = clips("random", 2, 8), drawn(VIEW, 8)
    plain = defined(VIEW, made, parameters)
    other = defined(VIEW, made, parameters, dtype=torch.bfloat16, channels_last=True)
    assert torch.equal(other, plain.bfloat16())
    assert other.is_contiguous(memory_format=torch.channels_last_3d)
    assert plain.is_contiguous()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_to_1e_4() -> None:
    made, parameters = clips("random", 2), drawn(VIEW)
    result = defined(VIEW, [clip.cuda() for clip in made], parameters, compiled=True).cpu()
    assert_equal(result, defined(VIEW, made, parameters))


def test_compiling_is_for_gpus_and_long_runs_unless_asked_for() -> None:
    cpu = torch.device("cpu")
    assert compilation.pays(torch.device("cuda"), 1)
    assert not compilation.pays(cpu, 156 * 64 * 2 * 8 * 40 * 40)  # the demo
    assert compilation.pays(cpu, 200 * 240_000 * 2 * 8 * 224 * 224)
    how = {"num_frames": 2, "mean": MEAN, "std": STD, "device": cpu, "antialias": False}
    never = build([VIEW], [SIZE], System(compile=Compile.never), **how, clips=10**9)
    short = build([VIEW], [SIZE], System(), **how, clips=10)
    assert [one.compiled for one in never + short] == [False, False]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_views_of_two_sizes_are_built_for_each() -> None:
    view = augment.View(jitter_probability=0, blur_probability=0)
    how = {"num_frames": 2, "mean": MEAN, "std": STD, "device": torch.device("cpu"), "antialias": False, "clips": 1}
    made = clips("random", 2, 8)
    for augmenter in build([view, view, view], [SIZE, 24, 24], System(compile=Compile.always), **how):
        assert augmenter.compiled
        compiled, plain = (
            replace(augmenter, compiled=how_)(made, [generator("sizes", i) for i in range(8)]) for how_ in (True, False)
        )
        assert torch.allclose(compiled, plain, atol=1e-4)
        assert not torch.equal(compiled, plain), "rounding differs"
        assert plain.shape[-1] == augmenter.size


NO_COMPILER = """
import torch
from sce_video import augment, augmenting
from sce_video.config.shared import Compile
from sce_video.config.shared import System
both = build([augment.View()] * 2, [32, 24], System(compile=Compile.always), num_frames=2, mean=0.45,
    std=0.225, antialias=False, device=torch.device("cpu"), clips=1)
clip = torch.zeros(2, 40, 40, 3, dtype=torch.uint8)
for how in both:
    print(how.compiled, how([clip], [torch.Generator().manual_seed(0)]).shape)
"""


@pytest.mark.slow
def test_without_a_compiler_one_note_says_so_and_the_operations_are_used(tmp_path: Any) -> None:
    nowhere = {"CXX": "/nowhere/g++", "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
    environment = {**os.environ, **nowhere, "SCE_VIDEO_CACHE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", NO_COMPILER], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "False torch.Size([1, 3, 2, 32, 32])\nFalse torch.Size([1, 3, 2, 24, 24])\n"
    notes = [
        line for line in result.stderr.splitlines() if line.startswith("warning: the augmentation is not compiled")
    ]
    assert len(notes) == 1
    assert "compiler" in notes[0], "the reason is given"
