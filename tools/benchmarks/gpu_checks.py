"""The checks of `benchmarks.gpu`: each prints lines of JSON. python -m benchmarks.gpu_checks NAME cuda|cpu full|tiny"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu import ROOT, say
from benchmarks.kinetics_like import make as make_videos
from sce_video import augment, distributed
from sce_video.augment import batched
from sce_video.command_line import compose_options
from sce_video.config.pretrain import PretrainConfig
from sce_video.data import crops
from sce_video.data.dataset import Batch
from sce_video.data.packed import Packed
from sce_video.data.readers.planes import Coding, PlanarClip
from sce_video.evaluation.search import nearest
from sce_video.methods import build_method
from sce_video.models import backbones
from sce_video.models.norm import fuse_norms
from sce_video.randomness import generator
from sce_video.runs.folder import RunFolder
from sce_video.runs.stop import StopRequest
from sce_video.training.loop import Run, train
from sce_video.training.memory import count_step
from sce_video.training.setup import open_log, set_up_pretraining

MEAN, STD = 0.45, 0.225


class Bench:
    """The device and the size of a check."""

    def __init__(self, device: str, size: str) -> None:
        self.device = torch.device(device)
        self.tiny = size == "tiny"
        self.on_gpu = device == "cuda"
        self.clips = 4 if self.tiny else 64

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], repeats: int = 5) -> float:
        """Return the mean seconds of a call after two calls that warm up."""
        repeats = 1 if self.tiny else repeats
        for _ in range(1 if self.tiny else 2):
            call()
        self.wait()
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return (time.perf_counter() - began) / repeats

    def profile(self, call: Callable[[], Any]) -> dict[str, float]:
        """Return launches, copies from the host, waits and the device's busy share of a call."""
        if not self.on_gpu:
            return {}
        call()
        self.wait()
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as found:
            began = time.perf_counter()
            call()
            self.wait()
            wall = time.perf_counter() - began
        events = found.events() or []
        on_device = [event for event in events if "CUDA" in str(event.device_type)]
        copies = [event for event in on_device if event.name.startswith("Memcpy")]
        busy = sum(event.time_range.elapsed_us() for event in on_device) / 1e6
        waits = sum(event.name in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize") for event in events)
        return {"launches": len(on_device) - len(copies), "copies": len(copies), "waits": waits, "busy": round(busy / wall, 3)}

    def largest_kernels(self, call: Callable[[], Any]) -> dict[str, float]:
        """Return the ten kernels of a call that take longest together, in milliseconds."""
        if not self.on_gpu:
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            call()
            self.wait()
        times: dict[str, float] = {}
        for event in found.events() or []:
            times[event.name[:100]] = times.get(event.name[:100], 0.0) + event.time_range.elapsed_us() / 1e3
        return dict(sorted(times.items(), key=lambda item: -item[1])[:10])

    def reset_memory(self) -> None:
        """Forget the peak of memory."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gigabytes(self) -> float:
        """Return the peak of allocated memory."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else 0.0


def environment(bench: Bench) -> None:
    """Names and versions, and two ceilings: copying and a product."""
    name = torch.cuda.get_device_name() if bench.on_gpu else platform.processor()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cudnn": torch.backends.cudnn.version()}
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    say({"device": name, "cores": os.cpu_count(), "date": time.strftime("%Y-%m-%d"), "commit": commit.strip(), **versions})
    source = torch.empty(2**20 if bench.tiny else 2**29, device=bench.device)
    target = torch.empty_like(source)
    say({"copy_tb_per_second": 8 * source.numel() / bench.seconds(lambda: target.copy_(source), 20) / 1e12})
    side = 256 if bench.tiny else 8192
    square = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    say({"bf16_tflops": 2 * side**3 / bench.seconds(lambda: square @ square, 20) / 1e12})


def random_clips(count: int, frames: int, *, planar: bool = True) -> Packed:
    """Return Kinetics-like crops of noise."""
    source = torch.Generator().manual_seed(0)
    clips: list[Tensor | PlanarClip] = []
    for b in range(count):
        box = crops.random_resized(256, 340, area=(0.2, 0.766), ratio=(0.75, 4 / 3), generator=generator("box", b))
        rows, columns = (box.height + 1) // 2, (box.width + 1) // 2
        luma = torch.randint(256, (frames, 2 * rows, 2 * columns), generator=source, dtype=torch.uint8)
        chroma = torch.randint(256, (frames, 2, rows, columns), generator=source, dtype=torch.uint8)
        clip = PlanarClip(luma, chroma, 0, 0, box.height, box.width, Coding(1, full_range=False))
        clips.append(clip if planar else clip.rgb())
    return Packed.pack(clips)


def augmentation(bench: Bench) -> None:
    """One view: equality with the definition on the CPU, time, launches, copies, waits, memory."""
    views = {
        "default": augment.View(),
        "solarize": augment.View(blur_probability=0.1, solarize_probability=0.2),
        "rand_augment": augment.View(rand_augment_operations=2),
    }
    for name, view in views.items():
        for frames, size in ((8, 32),) if bench.tiny else ((8, 224), (16, 112)):
            host = random_clips(bench.clips, frames)
            drawn = augment.draw(view, [generator("view", name, b) for b in range(bench.clips)])
            options: dict[str, Any] = {"size": size, "mean": MEAN, "std": STD}
            pixels, sources = host.pixels.to(bench.device), host.sources()
            few = Packed.pack(host.unpack()[:4])
            expected = augment.apply(view, few.unpack(), drawn[0:4], **options)
            found = batched.apply(view, few.pixels.to(bench.device), few.sources(), drawn[0:4], **options).cpu()
            off = ((found - expected).abs() * STD > 1e-4).float().mean().item()
            del expected, found
            bench.reset_memory()
            options |= {"dtype": torch.bfloat16, "channels_last": True}
            call = partial(batched.apply, view, pixels, sources, drawn, **options)
            seconds = bench.seconds(call)
            figures = {"view": name, "clips": f"{bench.clips} x {frames} x {size}", "ms": 1e3 * seconds, "share_off_by_1e-4": off}
            say({**figures, "peak_gb": bench.peak_gigabytes(), **bench.profile(call)})


def networks(bench: Bench) -> None:
    """SCE's forward and backward passes for each backbone, as it runs and in the straightforward way."""
    cases = [("tiny3d", 8, 32, 4)] if bench.tiny else [("r3d18", 16, 112, 64), ("r3d50", 8, 224, 64), ("r2plus1d18", 8, 224, 32)]
    torch.backends.cudnn.benchmark = True
    for backbone, frames, size, clips in cases:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            for one_by_one, fused in ((False, False), (True, False), (True, True)):
                inputs = small_step(bench, backbone, frames, size, clips, layout)
                line = fuse_norms(inputs[0]) if fused else "torch's batch norms"
                bench.reset_memory()
                call = partial(take_step, bench, *inputs, one_by_one=one_by_one)
                seconds = bench.seconds(call, 3)
                figures = {"network": backbone, "clips": f"{clips} x {frames} x {size}", "layout": str(layout).split(".")[-1]}
                figures |= {"norms": line, "backward_passes": "one per view" if one_by_one else "one"}
                say({**figures, "ms": 1e3 * seconds, "videos_per_second": clips / seconds, "peak_gb": bench.peak_gigabytes()})
                if one_by_one and layout == torch.channels_last_3d:
                    say({"network": backbone, "norms": line, "largest_kernels_ms": bench.largest_kernels(call)})
                del inputs, call


def small_step(
    bench: Bench, backbone: str, frames: int, size: int, clips: int, layout: torch.memory_format
) -> tuple[Any, list[Tensor]]:
    """Return SCE with a backbone, and two views of noise."""
    cfg = compose_options("pretrain", PretrainConfig, ["recipe=demo", f"model.backbone={backbone}"])
    torch.manual_seed(0)
    shape = (clips, 3, frames, size, size)
    views = [torch.randn(shape, device=bench.device).contiguous(memory_format=layout) for _ in range(2)]
    return build_method(cfg).to(bench.device), views


def take_step(bench: Bench, method: Any, views: list[Tensor], *, one_by_one: bool, dtype: Any = torch.bfloat16) -> float:
    """Go forward and backward; return the loss as a tensor."""
    keys: Any = ()
    total: Any = 0
    for part in range(2) if one_by_one else [None]:
        with torch.autocast("cuda", dtype=dtype) if bench.on_gpu and dtype is not None else nullcontext():
            step = method(views, None, 0.0, part=part, keys=keys)
        keys = step.keys
        step.loss.backward()
        total = total + step.loss.detach()
    return total  # type: ignore[no-any-return]


def precision(bench: Bench) -> None:
    """Loss and direction of the gradient in each precision, beside float32."""
    case = ("tiny3d", 8, 32, 4) if bench.tiny else ("r3d18", 16, 112, 16)
    truth: Tensor | None = None
    for name, dtype in (("fp32", None), ("tf32", None), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        distributed._set_arithmetic(name, deterministic=True)
        method, views = small_step(bench, *case, torch.channels_last_3d)
        loss = take_step(bench, method, views, one_by_one=True, dtype=dtype)
        gradient = torch.cat([p.grad.flatten().double() for p in method.parameters() if p.grad is not None])
        truth = gradient if truth is None else truth
        cosine = nn.functional.cosine_similarity(truth, gradient, dim=0).item()
        say({"precision": name, "loss": float(loss), "cosine_to_fp32": cosine})


@contextmanager
def prepared_run(bench: Bench, *words: str) -> Iterator[tuple[Run, StopRequest, PretrainConfig]]:
    """Set up a pretraining run in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_videos(Path(folder), 1, seconds=2)
        listed = Path(folder) / "list.csv"
        listed.write_text("path\n" + "\n".join(files * (16 if bench.tiny else 640)) + "\n")
        words = (f"data.train={listed}", "optim.epochs=1", "optim.warmup_epochs=0", f"out={folder}/run", *words)
        words = (*words, f"system.device={bench.device.type}", "monitor.train=", "monitor.val=", "system.save_every=1000")
        cfg = compose_options("pretrain", PretrainConfig, words)
        out = cfg.run_folder
        session = distributed.session(bench.device.type, precision=cfg.optim.precision.value)
        with session as device, StopRequest(out) as stop, RunFolder(out, cfg, stop) as run_folder:
            run, _, _ = set_up_pretraining(cfg, build_method, device, run_folder)
            yield run, stop, cfg


def step_words(bench: Bench, name: str) -> list[str]:
    """Return the options of a step of a network at 64 videos, or of a tiny one."""
    if bench.tiny:
        return ["recipe=demo", "optim.batch=4", "sce.queue=64", "system.workers=0", "augment.size=32"]
    recipe = {"r3d50": "sce_r3d50_k400_8f", "r3d18": "sce_r3d18_k400_112"}[name]
    return [f"recipe={recipe}", "optim.batch=64", "sce.queue=65536"]


class InMemory:
    """Batches that are in pinned memory already: `Batches` without decoding."""

    def __init__(self, batch: Batch, count: int) -> None:
        self.left = count
        self.batch = batch

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __iter__(self) -> InMemory:
        return self

    def __next__(self) -> Batch:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return self.batch


def step(bench: Bench) -> None:
    """The true loop on batches in memory: time of a step with and without augmenting ahead, busy share, launches."""
    for name in ("tiny",) if bench.tiny else ("r3d18", "r3d50"):
        for overlap in (True, False):
            with prepared_run(bench, *step_words(bench, name), f"system.overlap={overlap}") as (run, stop, cfg):
                videos, count = cfg.optim.batch, 4 if bench.tiny else 10
                views = [random_clips(videos, cfg.data.num_frames) for _ in range(2)]
                rows = list(range(videos))
                batch = Batch(rows, rows, [0] * videos, views, [[False] * videos] * 2, [""] * videos, [])
                batch = batch.pin_memory() if bench.on_gpu else batch
                run.save = lambda *_: None
                some = partial(train_some, run, stop, batch)
                some(3)
                bench.wait()
                began = time.perf_counter()
                some(count)
                bench.wait()
                seconds = (time.perf_counter() - began) / count
                figures = {"step_of": name, "overlap": overlap, "ms": 1e3 * seconds, "videos_per_second": videos / seconds}
                say({**figures, "peak_gb": bench.peak_gigabytes(), **bench.profile(partial(some, 5))})


def train_some(run: Run, stop: StopRequest, batch: Batch, steps: int) -> None:
    """Take steps of the true loop with the same batch again and again."""
    run.total_steps = run.step + steps
    run.open_batches = lambda _: InMemory(batch, steps)  # type: ignore[assignment,return-value]
    with open_log(run, clips_per_step=2 * len(batch.rows), every=1000) as log:
        train(run, log, stop)


def files(bench: Bench) -> None:
    """The program on files, with all cores decoding."""
    with tempfile.TemporaryDirectory() as folder:
        paths = make_videos(Path(folder), 1 if bench.tiny else 8, seconds=2 if bench.tiny else 10)
        (Path(folder) / "list.csv").write_text("path\n" + "\n".join(paths * (16 if bench.tiny else 160)) + "\n")
        words = [*step_words(bench, "r3d18"), f"data.train={folder}/list.csv", f"out={folder}/run", "optim.epochs=1"]
        words += ["optim.warmup_epochs=0", "monitor.train=", "monitor.val=", "system.log_every=5"]
        run_program(bench, "pretrain", words)
        lines = (Path(folder) / "run/log.jsonl").read_text().splitlines()
        say({"pretraining_on_files": json.loads(lines[-1])})


def run_program(bench: Bench, program: str, words: list[str], *, before: tuple[str, ...] = (), limit: float = 100) -> str:
    """Run a program of tools/; return the end of its output, and print how it ended."""
    command = [sys.executable, *before, str(ROOT / f"tools/{program}.py"), *words]
    if program == "pretrain":
        command.append(f"system.device={bench.device.type}")
    began = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    say({"program": program, "code": result.returncode, "seconds": time.monotonic() - began, "end": result.stderr[-300:]})
    return result.stdout


def ranks(bench: Bench) -> None:
    """One nccl process, and two gloo processes that share the device."""
    with tempfile.TemporaryDirectory() as folder:
        small = ["recipe=demo", "optim.epochs=1", "monitor.train=", "monitor.val=", "optim.warmup_epochs=0"]
        cases = [("gloo", 2)] if not bench.on_gpu else [("nccl", 1), ("gloo", 2)]
        for backend, count in cases:
            torchrun = ("-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone")
            words = [*small, f"system.backend={backend}", f"out={folder}/{backend}"]
            say({"backend": backend, "processes": count})
            run_program(bench, "pretrain", words, before=torchrun)


def resume(bench: Bench) -> None:
    """SIGTERM in the middle of a run, and the same command again."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["recipe=demo", "optim.epochs=1", "optim.warmup_epochs=0", "monitor.train=", "monitor.val=", f"out={folder}/run"]
        os.environ |= {"SCE_VIDEO_ALLOW_FAULTS": "1", "SCE_VIDEO_FAULT": "term@step=6"}
        run_program(bench, "pretrain", words)
        del os.environ["SCE_VIDEO_FAULT"]
        run_program(bench, "pretrain", words)


def memory(bench: Bench) -> None:
    """The peak of a step of every recipe at its command's videos per GPU, beside the plan."""
    recipes = ["demo"] if bench.tiny else ["sce_r3d18_k400_112", "sce_r3d18_k400", "sce_r2plus1d18_k400", "sce_r3d50_k400_16f"]
    for recipe in recipes:
        cfg = compose_options("pretrain", PretrainConfig, [f"recipe={recipe}", "data.train=x"])
        videos = 4 if bench.tiny else 64
        planned = count_step(cfg, build_method).at(videos) / 1e9
        shape = (videos, 3, cfg.data.num_frames, cfg.augment.size, cfg.augment.size)
        bench.reset_memory()
        views = [torch.randn(shape, device=bench.device).contiguous(memory_format=torch.channels_last_3d) for _ in range(2)]
        method = build_method(cfg).to(bench.device)
        take_step(bench, method, views, one_by_one=True)
        say({"recipe": recipe, "videos": videos, "peak_gb_without_augmentation": bench.peak_gigabytes(), "planned_gb": planned})
        del method, views


def evaluation(bench: Bench) -> None:
    """Features in float32 and bfloat16, and a search in bounded memory."""
    frames, size, count = (8, 32, 4) if bench.tiny else (8, 256, 64)
    backbone, _ = backbones.build("tiny3d" if bench.tiny else "r3d50")
    backbone = backbone.to(bench.device).eval()
    clips = torch.randn(count, 3, frames, size, size, device=bench.device).contiguous(memory_format=torch.channels_last_3d)
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
            distributed._set_arithmetic(name, deterministic=False)
            with torch.autocast("cuda", dtype=dtype) if bench.on_gpu and dtype else nullcontext():
                seconds = bench.seconds(lambda: backbone(clips), 3)
                found[name] = backbone(clips).float()
            say({"features_in": name, "clips_per_second": count / seconds})
        cosine = nn.functional.cosine_similarity(found["fp32"], found["bf16"]).min().item()
        say({"smallest_cosine_of_bf16_features_to_fp32": cosine})
        rows, width = ((64, 128), 64) if bench.tiny else ((20_000, 240_000), 2048)
        queries, bank = (torch.randn(count, width, device=bench.device) for count in rows)
        bench.reset_memory()
        say({"search_seconds": bench.seconds(lambda: nearest(queries, bank, 20), 1), "peak_gb": bench.peak_gigabytes()})


def demo(bench: Bench) -> None:
    """README's commands with default options: pretraining, retrieval, finetuning."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [f"checkpoint={folder}/demo", "train=synthetic", "test=synthetic"]
        epochs = ["optim.epochs=1", "optim.warmup_epochs=0"] if bench.tiny else []
        run_program(bench, "pretrain", [f"out={folder}/demo", *epochs], limit=110)
        print(run_program(bench, "retrieval", [*sets, "clips_per_video=1", "num_crops=1"]), flush=True)
        small = ["optim.epochs=1", "testing.clips_per_video=1"]
        run_program(bench, "finetune", ["recipe=demo", *sets, f"out={folder}/tuned", *small])


def tests(bench: Bench) -> None:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    say({"tests": result.returncode, "end": result.stdout[-600:]})


if __name__ == "__main__":
    chosen, on_device, of_size = sys.argv[1:]
    globals()[chosen](Bench(on_device, of_size))
