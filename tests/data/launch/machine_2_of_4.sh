#!/bin/bash
RUN=/data/runs/k400
COMMAND=(tools/pretrain.py recipe=sce_r3d50_k400_16f data.train=/data/k400/train.csv out=/data/runs/k400)
TORCHRUN=(/opt/sce/bin/python -m torch.distributed.run --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2)
SETUP=''
STOP_SECONDS=240
MAX_RESTARTS=20
RENDEZVOUS=(--nnodes=4 --rdzv-backend=c10d --rdzv-id=k400 --rdzv-endpoint=host0:29500 --rdzv-conf=is_host=0 --nproc-per-node=8)
PAUSE_SECONDS=5
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240

# Decide after each exit whether to restart. torchrun always exits with 1 on errors, so read the run folder: status.json and
# the names of the checkpoints, from which a restart would continue.
# Reads RUN (run folder; empty: the program has none), STOP_SECONDS, MAX_RESTARTS. Needs bash 4.2 or newer, find, awk, sed.

noticed=''  # set when this script is asked to stop: preemption, time limit, Ctrl-C
failures=0  # restarts after a failure
idle=0      # consecutive failures without a new checkpoint

progress() { # print the newest step in the checkpoints, summed over all splits
    if [ -z "$RUN" ]; then
        echo 0
        return
    fi
    find "$RUN/" -maxdepth 3 -type d -path '*/checkpoints/step_*' 2>/dev/null | awk -F/step_ '
        { folder = substr($0, 1, length($0) - length($NF)); if ($NF + 0 > newest[folder]) newest[folder] = $NF + 0 }
        END { for (folder in newest) sum += newest[folder]; print sum + 0 }'
}

field() { # print the value of $1 in status.json, written with one field per line
    sed -n "s/^ *\"$1\": \"\{0,1\}\(.*[^\",]\)\"\{0,1\},\{0,1\}\$/\1/p" "$RUN/status.json" 2>/dev/null | head -n 1
}

begin() { # record the state of the run before a start
    before=$(progress)
    old_status=$(cksum "$RUN/status.json" 2>/dev/null)
}

watch() { # wait for process $1 and set code; once noticed, create STOP, and send SIGTERM after STOP_SECONDS
    local seconds=0
    while kill -0 "$1" 2>/dev/null; do
        if [ -n "$noticed" ]; then
            # Repeatedly, because a starting program removes the STOP of an earlier start.
            if [ -d "$RUN" ]; then : >"$RUN/STOP"; fi
            if [ "$seconds" -eq "$STOP_SECONDS" ] || { [ -z "$RUN" ] && [ "$seconds" -eq 0 ]; }; then kill -TERM "$1"; fi
            seconds=$((seconds + 1))
        fi
        sleep 1 & # in the background: a trap runs while bash waits, not while it runs a command
        wait $!
    done
    wait "$1"
    code=$?
}

judge() { # after a start with exit code $1, set move (done, stop, again), why (a message) and result (our exit code)
    local status='' reason='' ended=''
    if [ -n "$RUN" ] && [ "$(cksum "$RUN/status.json" 2>/dev/null)" != "$old_status" ]; then
        status=$(field status) reason=$(field reason) ended=$(field exit_code)
    fi
    why="ended with code $1; status: ${status:-none written}${reason:+, $reason}"
    move=stop result=70
    if [ "$1" -eq 0 ] || [ "$status" = completed ]; then
        move='done' result=0 why=completed
    elif [ "$status" = failed ] && [ "$ended" = 70 ]; then
        why="not started again, the same would happen: $reason"
    elif [ "$status" = preempted ] && [ -z "$noticed" ] && [[ $reason == file*STOP* ]]; then
        result=75 why="stopped by hand ($reason): the same command continues it"
    elif [ -n "$noticed" ]; then
        move=again result=75
    elif [ -z "$RUN" ]; then
        result=$1
    else
        judge_failure
    fi
}

judge_failure() { # part of judge: restart after a failure, within the limits
    local steps
    steps=$(progress)
    failures=$((failures + 1))
    idle=$((idle + 1))
    if [ "$steps" -gt "$before" ]; then idle=0; fi
    if [ "$idle" -ge 2 ]; then
        why="crash loop: 2 starts in a row ended without a checkpoint after step $steps; the last $why"
    elif [ "$failures" -gt "$MAX_RESTARTS" ]; then
        why="max_restarts ($MAX_RESTARTS) reached; the last start $why"
    else
        move=again result=75
    fi
}

# Restart the run on this machine until it is completed. Of several machines, each runs this script and joins the rendezvous.
# Reads SETUP, RENDEZVOUS, TORCHRUN, COMMAND, PAUSE_SECONDS, and the variables of restart.sh.
# Exit code: 0 completed, 75 stopped (the same command continues), 70 failed (do not restart).

trap 'noticed=yes' USR1 USR2 TERM INT
if [ -n "$SETUP" ]; then
    # shellcheck source=/dev/null
    . "$SETUP"
fi
while :; do
    begin
    "${TORCHRUN[@]}" "${RENDEZVOUS[@]}" "${COMMAND[@]}" &
    watch $!
    judge "$code"
    echo "launch: $why" >&2
    if [ "$move" != again ] || [ -n "$noticed" ]; then exit "$result"; fi
    echo "launch: starting again (restart $failures of at most $MAX_RESTARTS)" >&2
    sleep "$PAUSE_SECONDS"
done
