"""Say how much GPU memory a pretraining run needs and how to fit it, without a GPU.

python tools/plan.py recipe=sce_r3d50_k400_16f gpus=8 memory=80
python tools/plan.py recipe=sce_r3d18_ucf101 gpus=1 memory=24 augment.size=224
"""

import math
import sys

from sce_video.command_line import compose_options, errors_as_exit_codes
from sce_video.config.pretrain import PretrainConfig
from sce_video.errors import InputError
from sce_video.methods import build_method
from sce_video.training.memory import USABLE, count_step, fit

OWN = {"gpus": 1.0, "memory": 80.0}  # GPUs of all machines, GB of each


def plan(words: list[str]) -> None:
    """Print the memory of a step at the recipe's own batch, and the largest local batch that fits."""
    own = dict(OWN)
    for word in [word for word in words if word.partition("=")[0] in OWN]:
        name, _, value = word.partition("=")
        if not value.replace(".", "", 1).isdigit() or float(value) <= 0:
            raise InputError(f"{name} ({value}) must be a number above 0")
        own[name] = float(value)
    words = [word for word in words if word.partition("=")[0] not in OWN]
    if not any(word.startswith("data.train=") for word in words):
        words.append("data.train=not_read.csv")
    cfg = compose_options("pretrain", PretrainConfig, words)
    gpus, memory_bytes = int(own["gpus"]), own["memory"] * 1e9
    step = count_step(cfg, build_method)
    print(f"{cfg.name}: {step.fixed / 1e9:.1f} GB for weights, optimiser and augmentation, {step.per_video / 1e9:.3f} GB a video")
    local = math.ceil(cfg.optim.batch / gpus / cfg.optim.accumulate)
    given = f"{cfg.optim.batch} videos on {gpus} GPUs with optim.accumulate={cfg.optim.accumulate}"
    print(f"{given}: {step.at(local) / 1e9:.1f} GB per GPU")
    most = step.most_videos(memory_bytes)
    print(f"largest micro-batch on {own['memory']:g} GB (of which {USABLE:.0%} are used): {most} videos per GPU")
    accumulate = fit(step, batch=cfg.optim.batch, processes=gpus, memory_bytes=memory_bytes)
    local = cfg.optim.batch // gpus // accumulate
    print(f"fits with optim.accumulate={accumulate}: {local} videos per GPU and micro-batch, {step.at(local) / 1e9:.1f} GB")


if __name__ == "__main__":
    with errors_as_exit_codes():
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(__doc__)
        else:
            plan(sys.argv[1:])
