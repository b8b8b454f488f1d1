# Starts on this machine until the run is completed; with several machines each runs this, and they meet at the rendezvous.
# Used besides: SETUP, RENDEZVOUS, TORCHRUN, COMMAND, PAUSE_SECONDS.
# Exit code: 0 completed, 75 stopped (the same command continues), 70 failed and not to be started again.

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
