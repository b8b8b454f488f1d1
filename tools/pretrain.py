"""Pretrain a video encoder without labels.

python tools/pretrain.py                                   # the demo: minutes on a laptop
python tools/pretrain.py data.train=/data/my_videos        # your own videos, with values that fit them
python tools/pretrain.py recipe=sce_r3d18_ucf101 data.train=/data/ucf101/train.csv out=runs/ucf
torchrun --nproc-per-node 8 tools/pretrain.py recipe=sce_r3d50_k400_16f data.train=/data/k400/train.csv
"""

import sys

from start import new_recipe
from start.own_videos import complete

from sce_video.command_line import errors_as_exit_codes, run_program
from sce_video.config.pretrain import PretrainConfig
from sce_video.programs.pretrain import pretrain

if __name__ == "__main__":
    if any(word.startswith(new_recipe.FLAG) for word in sys.argv[1:]):
        with errors_as_exit_codes():
            new_recipe.write_recipe("pretrain", sys.argv[1:])
    elif {"-m", "--multirun"} & set(sys.argv[1:]) and not any("data.train" in word for word in sys.argv[1:]):
        # A folder per job, and a table. Sweeps on own videos get values that fit, and folders, from `complete`.
        from compare.program import sweep

        sweep(sys.argv[1:])
    else:
        run_program("pretrain", PretrainConfig, pretrain, complete)
