"""Measure a part of the system against rivals on this machine; times are to be compared within one run only.

python tools/benchmark.py retrieval
python tools/benchmark.py retrieval --queries 500 --bank 2000 --width 512 --rounds 9
python tools/benchmark.py retrieval --large
python tools/benchmark.py evaluate
python tools/benchmark.py evaluate --files a.mp4 b.mp4 --decoder pyav
python tools/benchmark.py augment --threads 1 --kornia kornia/bin/python --torchaug torchaug/bin/python
"""

import argparse

from sce_video.benchmark import augment, evaluate, retrieval

PARTS = {
    "retrieval": retrieval,
    "evaluate": evaluate,
    "augment": augment,
}  # each has add_arguments(parser), run(options) and a docstring

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="part")
    for name, part in PARTS.items():
        command = commands.add_parser(name, description=part.__doc__, help=(part.__doc__ or "").splitlines()[0])
        part.add_arguments(command)
        command.set_defaults(run=part.run)
    options = parser.parse_args()
    options.run(options)
