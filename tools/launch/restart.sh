# What happened to a start, and whether to start again. torchrun answers 1 whatever happened, so the answer is in the run
# folder: status.json (how it ended) and the names of the checkpoints (what a restart would keep).
# Used: RUN (run folder; empty: the program has none), STOP_SECONDS, MAX_RESTARTS. bash 4.2 or newer, find, awk, sed.

noticed=''  # set when this script was asked to end: preemption, time limit, Ctrl-C
failures=0  # restarts after a failure
idle=0      # starts in a row that failed without a new checkpoint

progress() { # print the steps that a restart would keep, of all splits together
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

begin() { # note where the run stands before a start
    before=$(progress)
    said=$(cksum "$RUN/status.json" 2>/dev/null)
}

watch() { # wait for process $1 and set code; once noticed, ask it to stop, and insist after STOP_SECONDS
    local seconds=0
    while kill -0 "$1" 2>/dev/null; do
        if [ -n "$noticed" ]; then
            # Again and again: a program that is just starting removes the file of an earlier start.
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

judge() { # set move (done, stop, again), why (words) and result (our exit code) after a start that ended with code $1
    local status='' reason='' ended=''
    if [ -n "$RUN" ] && [ "$(cksum "$RUN/status.json" 2>/dev/null)" != "$said" ]; then
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

judge_failure() { # of judge: a failure that may go away, unless it does not
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
