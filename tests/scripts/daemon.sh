# Sourced by the script tests: starts and stops a turnkeepd. Bash.

daemon=""

# start_daemon LOG COMMAND...: runs the daemon in the background; its process is $daemon.
start_daemon() {
  local log="$1"
  shift
  "$@" >"$log" 2>&1 </dev/null &
  daemon=$!
}

# wait_for_daemon COMMAND...: until COMMAND (a `turnkeep status`) succeeds.
wait_for_daemon() {
  local end=$((SECONDS + 30))
  until "$@" >/dev/null 2>&1; do
    kill -0 "$daemon" 2>/dev/null || { echo "turnkeepd ended while starting"; return 1; }
    [[ $SECONDS -lt $end ]] || { echo "turnkeepd did not answer within 30 s"; return 1; }
    sleep 0.05
  done
}

# stop_daemon: SIGTERM; fails unless the daemon exits with 0.
stop_daemon() {
  local status=0
  kill -TERM "$daemon"
  wait "$daemon" || status=$?
  daemon=""
  [[ $status -eq 0 ]] || { echo "turnkeepd exited with code $status after SIGTERM"; return 1; }
}

kill_daemon() {
  [[ -z "$daemon" ]] || kill -KILL "$daemon" 2>/dev/null || true
}
