"""Inspect, hash and export checkpoints: run folders, checkpoint folders, weight files.

python tools/checkpoint.py inspect runs/demo
python tools/checkpoint.py digest runs/demo runs/copy/checkpoints/step_00000300
python tools/checkpoint.py export runs/demo encoder.safetensors --to safetensors
python tools/checkpoint.py cache

digest prints a SHA-256 over names, dtypes, shapes and bytes of all tensors: equal states have equal digests.
cache lists what the programs keep outside run folders (features, built-in videos) with sizes; cache --clear NAME removes it.
inspect checks every checkpoint of a run against its digest, and lists the tensors of the newest intact one.
"""

import argparse

from start.caches import clear_cache, list_cache

from sce_video.command_line import errors_as_exit_codes
from sce_video.config.evaluate import ExportConfig, Format
from sce_video.errors import ArgumentParser
from sce_video.export import export
from sce_video.weights import inspect

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
        if options.command == "cache":
            print("\n".join(clear_cache(options.clear) if options.clear else list_cache()))
