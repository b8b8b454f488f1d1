"""Start a program on many processes and machines, and start it again when it was stopped or killed.

torch.distributed's `torchrun` starts and connects the processes; what is here renders what the cluster's own scheduler
takes. The shell code is in `*.sh`: `restart.sh` (what happened, and what next), used by `slurm.sh` (one job, queued again)
and `loop.sh` (one machine, pod or VM: starts again by itself). `tools/launch.py` is the program; docs/launch.md explains.
"""
