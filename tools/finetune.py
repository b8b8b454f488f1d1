"""Train a pretrained encoder with labels: finetuning, or a linear probe with model.frozen=true.

python tools/finetune.py checkpoint=runs/demo train=synthetic test=synthetic
python tools/finetune.py recipe=ucf101 checkpoint=runs/k400 train=train.csv test=test.csv out=runs/k400_ucf101
python tools/finetune.py predict=/data/more_videos checkpoint=runs/k400_ucf101
torchrun --nproc-per-node 8 tools/finetune.py recipe=linear_k400 checkpoint=runs/k400 train=train.csv test=val.csv
"""

import sys

from start import new_recipe
from start.own_videos import complete_finetuning

from sce_video.command_line import errors_as_exit_codes, run_program
from sce_video.config.finetune import FinetuneConfig
from sce_video.programs.finetune import finetune

if __name__ == "__main__":
    if any(word.startswith(new_recipe.FLAG) for word in sys.argv[1:]):
        with errors_as_exit_codes():
            new_recipe.write_recipe("finetune", sys.argv[1:])
    else:
        run_program("finetune", FinetuneConfig, finetune, complete_finetuning)
