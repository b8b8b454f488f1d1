"""Launch a program on several processes and machines, and restart it when it is stopped or killed.

`torchrun` starts and connects the processes; this package writes the scripts for the cluster's scheduler. The shell code is
in `*.sh`: `restart.sh` decides after each exit whether to restart; `slurm.sh` (one job, requeued) and `loop.sh` (one machine,
pod or VM, restarted in a loop) use it. `tools/launch.py` is the program, docs/launch.md its documentation.
"""
