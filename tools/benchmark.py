"""Benchmark a part of the system against other libraries on this machine. Compare times within one run only.

python tools/benchmark.py retrieval
python tools/benchmark.py retrieval --queries 500 --bank 2000 --width 512 --rounds 9
python tools/benchmark.py retrieval --large
python tools/benchmark.py evaluate
python tools/benchmark.py decode
python tools/benchmark.py decode --forms
python tools/benchmark.py kinds --folder kinds
python tools/benchmark.py comm --ranks 8 32
python tools/benchmark.py gpu part=1
python tools/benchmark.py norm
python tools/benchmark.py evaluate --files a.mp4 b.mp4 --decoder pyav
python tools/benchmark.py augment --threads 1 --kornia kornia/bin/python --torchaug torchaug/bin/python
"""

import argparse

from benchmarks import augment, comm, decode, evaluate, gpu, kinds, norm, retrieval

from sce_video.command_line import errors_as_exit_codes
from sce_video.data.decode import DecodeError
from sce_video.errors import ArgumentParser, InputError

# Each has add_arguments(parser), run(options) and a docstring.
PARTS = {
    "retrieval": retrieval,
    "evaluate": evaluate,
    "decode": decode,
    "kinds": kinds,
    "augment": augment,
    "comm": comm,
    "gpu": gpu,
    "norm": norm,
}

if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="part")
    for name, part in PARTS.items():
        command = commands.add_parser(name, description=part.__doc__, help=(part.__doc__ or "").splitlines()[0])
        part.add_arguments(command)
        command.set_defaults(run=part.run)
    with errors_as_exit_codes():
        options = parser.parse_args()
        try:
            options.run(options)
        except DecodeError as error:
            raise InputError(str(error)) from error
