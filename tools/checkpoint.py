"""Inspect, hash and export checkpoints: run folders, checkpoint folders, weight files.

python tools/checkpoint.py inspect runs/demo
python tools/checkpoint.py digest runs/demo runs/copy/checkpoints/step_00000300
python tools/checkpoint.py export runs/demo encoder.safetensors --to safetensors
python tools/checkpoint.py precise-bn runs/demo synthetic encoder.safetensors --clips 512
python tools/checkpoint.py cache

digest prints a SHA-256 over names, dtypes, shapes and bytes of all tensors: equal states have equal digests.
precise-bn writes a new file of the encoder whose batch norms hold the means and variances over training clips (of a list or
folder, as evaluation takes them) instead of training's moving averages; compare both with tools/evaluate.py.
cache lists what programs keep outside run folders (features, built-in videos, indexes) with sizes; cache --clear NAME removes it.
inspect checks every checkpoint of a run against its digest, and lists the tensors of the newest intact one.
"""

import argparse
from pathlib import Path

import torch
from start.caches import clear_cache, list_cache
from start.precise_norm import set_population_statistics

from sce_video import distributed
from sce_video.command_line import errors_as_exit_codes
from sce_video.config.evaluate import ExportConfig, Format
from sce_video.data import loader
from sce_video.errors import ArgumentParser, InputError
from sce_video.evaluation.views import Views, test_size
from sce_video.programs.export import export, refuse_existing, require_packages, write_safetensors
from sce_video.runs.files import replace_atomically
from sce_video.weights import inspect, load


def write_precise(options: argparse.Namespace) -> None:
    """Set the population statistics of an encoder's batch norms and write it to a new file."""
    if distributed.launched():
        raise InputError("precise-bn is done by one process: start it without torchrun")
    out = Path(options.out)
    if out.suffix != ".safetensors" or options.clips < 2:
        raise InputError(f"out ({out}) must end in .safetensors, and --clips ({options.clips}) be at least 2")
    refuse_existing(out)
    require_packages("safetensors")
    encoder = load.load_encoder(options.checkpoint, options.backbone or None, trust=options.trust)
    print(encoder.report)
    videos = loader.spread(loader.read_videos(options.data, split="train", root=options.root), options.clips)
    frames, seconds, size = int(encoder.clip["num_frames"]), encoder.clip["clip_seconds"], test_size(int(encoder.clip["size"]))
    views = Views(max(1, options.clips // len(videos)), 1, frames, seconds, size)
    with distributed.session(options.device) as device:
        norms, clips = set_population_statistics(encoder, videos, views, device=device, workers=loader.share_cores(device, -1))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(out) as work:
        write_safetensors(encoder.cpu(), work, torch.empty(0))
        refuse_existing(out)
    print(f"written: {out}: {norms} batch norms with the statistics of {clips} clips; {options.checkpoint} is as it was")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, many in (("digest", "+"), ("inspect", 1)):
        command = commands.add_parser(name)
        command.add_argument("paths", nargs=many, metavar="path", help="run folder, checkpoint folder or weight file")
    command = commands.add_parser("export", help="as tools/export.py")
    command.add_argument("checkpoint")
    command.add_argument("out", help="file to write; must not exist")
    command.add_argument("--to", required=True, type=Format, choices=list(Format), metavar="|".join(f.value for f in Format))
    command = commands.add_parser("precise-bn", help="population statistics for batch norms, as a new file")
    command.add_argument("checkpoint")
    command.add_argument("data", help="a list or folder of training videos, or `synthetic`")
    command.add_argument("out", help=".safetensors file to write; must not exist")
    command.add_argument("--clips", type=int, default=1024, help="of as many videos as there are, at most one of each first")
    command.add_argument("--root", default="", help="base of the list's relative paths")
    command.add_argument("--backbone", default="", help="network of a weight file without a description")
    command.add_argument("--trust", action="store_true", help="allow the checkpoint to name a network outside sce_video")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    command = commands.add_parser("cache", help="list or clear what the programs keep in $SCE_VIDEO_CACHE")
    command.add_argument("--clear", metavar="NAME", help="remove an entry of the list, or all of them: `all`")
    with errors_as_exit_codes():
        options = parser.parse_args()
        if options.command == "export":
            export(ExportConfig(checkpoint=options.checkpoint, to=options.to, out=options.out))
        for path in options.paths if options.command == "digest" else ():
            print(f"{inspect.digest(path)}  {path}")
        for path in options.paths if options.command == "inspect" else ():
            print(inspect.describe(path))
        if options.command == "precise-bn":
            write_precise(options)
        if options.command == "cache":
            print("\n".join(clear_cache(options.clear) if options.clear else list_cache()))
