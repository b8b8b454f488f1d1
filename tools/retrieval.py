"""Retrieve videos of the same class: R@1/5/10/20/25/50 and mAP of a checkpoint and of random weights.

python tools/retrieval.py checkpoint=runs/demo train=synthetic test=synthetic
python tools/retrieval.py checkpoint=runs/ucf train=/data/ucf101/train.csv test=/data/ucf101/test.csv
python tools/retrieval.py checkpoint=runs/ucf train=trainlist01.txt test=testlist01.txt root=/data/UCF-101 labels=folder
"""

from sce_video.command_line import run_program
from sce_video.config.evaluate import RetrievalConfig
from sce_video.programs.retrieval import retrieve

if __name__ == "__main__":
    run_program("retrieval", RetrievalConfig, retrieve)
