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
