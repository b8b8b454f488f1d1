# One start inside a SLURM job. To continue, the script requeues the job, which keeps its number and script.
# Reads LOGS, SETUP, PORT, SRUN, TORCHRUN, PROCESSES, COMMAND, and the variables of restart.sh.

trap 'noticed=yes' USR2 TERM # runs at once, because srun runs in the background
counts="$LOGS/job_$SLURM_JOB_ID.restarts"
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -r "$counts" ]; then read -r failures idle <"$counts"; fi
if [ -n "$SETUP" ]; then
    # shellcheck source=/dev/null
    . "$SETUP"
fi
if [ "$PORT" -eq 0 ]; then PORT=$((20000 + SLURM_JOB_ID % 20000)); fi # two jobs may share a machine
# This script runs on the first machine; torchrun compares this name to find the rendezvous host.
head=$(hostname)
echo "launch: start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, rendezvous at $head:$PORT"

begin
# --wait instead of --kill-on-bad-exit: a machine with nothing to save exits first and must not kill the one that saves.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait="$STOP_SECONDS" \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${SRUN[@]}" \
    "${TORCHRUN[@]}" --nnodes="$SLURM_NNODES" --nproc-per-node="$PROCESSES" --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint="$head:$PORT" "${COMMAND[@]}" &
watch $!
judge "$code"
# scontrol would also requeue a cancelled job, or one that SLURM requeues itself; both are COMPLETING by now.
state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p')
if [ "$move" = again ] && [ "$state" != RUNNING ]; then
    move=stop result=75 why="not queued again, for the job is $state (cancelled?): the same command continues it; it $why"
fi
echo "launch: $why"
if [ "$move" != again ]; then exit "$result"; fi
echo "$failures $idle" >"$counts"
trap '' USR2 TERM # requeuing ends this script
if ! scontrol requeue "$SLURM_JOB_ID"; then
    echo 'launch: the job could not be queued again: the same command continues the run'
    exit 75
fi
