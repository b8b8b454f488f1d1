"""Evaluate an encoder without training it: kNN, retrieval, few-shot and linear classification, in one table.

python tools/evaluate.py checkpoint=runs/demo train=synthetic test=synthetic
python tools/evaluate.py checkpoint=runs/k400 train=/data/ucf101/train.csv test=/data/ucf101/test.csv
"""

from sce_video.command_line import run_program
from sce_video.config.evaluate import EvaluateConfig
from sce_video.programs.evaluate import evaluate

if __name__ == "__main__":
    run_program("evaluate", EvaluateConfig, evaluate)
