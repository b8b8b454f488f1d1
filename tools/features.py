"""Write the features of a list or folder of videos to a file.

python tools/features.py checkpoint=runs/demo data=/data/my_videos out=features.npz
python tools/features.py checkpoint=runs/k400 data=/data/ucf101/train.csv out=train.safetensors
torchrun --nproc-per-node 8 tools/features.py checkpoint=runs/k400 data=/data/k400/train.csv out=k400.safetensors
"""

from sce_video.command_line import run_program
from sce_video.config.evaluate import FeaturesConfig
from sce_video.programs.embed import write_features

if __name__ == "__main__":
    run_program("features", FeaturesConfig, write_features)
