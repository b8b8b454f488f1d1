"""Launch a program on several processes and machines, and restart it when it is stopped or killed.

python tools/launch.py local processes=2 -- tools/pretrain.py
python tools/launch.py slurm nodes=4 gpus=8 -- tools/pretrain.py recipe=sce_r3d50_k400_16f data.train=train.csv out=runs/k400
python tools/launch.py slurm nodes=4 gpus=8 dry_run=true -- tools/pretrain.py recipe=sce_r3d18_k400 data.train=train.csv
torchrun --nproc-per-node 8 tools/launch.py check

Kubernetes and SkyPilot: examples/launch/, docs/launch.md.
"""

import sys

from launch.program import main

if __name__ == "__main__":
    main(sys.argv[1:], __doc__)
