# One start inside a SLURM job; to continue, the job is queued again, with its number and this script.
# Used besides: LOGS, SETUP, PORT, SRUN, TORCHRUN, PROCESSES, COMMAND.

trap 'noticed=yes' USR2 TERM # runs at once, for srun is in the background
counts="$LOGS/job_$SLURM_JOB_ID.restarts"
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -r "$counts" ]; then read -r failures idle <"$counts"; fi
if [ -n "$SETUP" ]; then
    # shellcheck source=/dev/null
    . "$SETUP"
fi
if [ "$PORT" -eq 0 ]; then PORT=$((20000 + SLURM_JOB_ID % 20000)); fi # two jobs may share a machine
# This script runs on the first machine; torchrun knows the host of the rendezvous by this name.
head=$(hostname)
echo "launch: start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, rendezvous at $head:$PORT"

begin
# --wait, not --kill-on-bad-exit: a machine that has nothing to save ends first, and must not end the one that saves.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait="$STOP_SECONDS" \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "${SRUN[@]}" \
    "${TORCHRUN[@]}" --nnodes="$SLURM_NNODES" --nproc-per-node="$PROCESSES" --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv-endpoint="$head:$PORT" "${COMMAND[@]}" &
watch $!
judge "$code"
# A job that was cancelled shows as COMPLETING by now, and scontrol would revive it; so does one that SLURM requeues itself.
state=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p')
if [ "$move" = again ] && [ "$state" != RUNNING ]; then
    move=stop result=75 why="not queued again, for the job is $state (cancelled?): the same command continues it; it $why"
fi
echo "launch: $why"
if [ "$move" != again ]; then exit "$result"; fi
echo "$failures $idle" >"$counts"
trap '' USR2 TERM # being queued again ends this script
if ! scontrol requeue "$SLURM_JOB_ID"; then
    echo 'launch: the job could not be queued again: the same command continues the run'
    exit 75
fi
