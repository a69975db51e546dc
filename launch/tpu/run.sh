#!/usr/bin/env bash
# Trains on all workers, shows what they print, and returns their status: 0 finished, 75 stopped, and the same command resumes it.
#
#   launch/tpu/run.sh --name NAME --zone ZONE --topology v5e:16x16 --config NAME --workdir gs://B/FOLDER [--config.key=value ...]
#
# The run does not depend on this machine: where the connection breaks it goes on, and the same command with the
# --run-id that was printed attaches to it. With --stop in place of a run, the run that is going on saves and stops.
# What every worker prints is copied to WORKDIR/logs/ID. Before the run hra_jax.check looks at devices, bucket and data
# on all workers: what it finds wrong costs a minute, and not a compilation.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
need name zone topology
if [ -n "$STOP" ]; then
  read_topology
  on_all_workers "bash hra_jax/worker.sh stop"
  exit 0
fi
need config workdir
check_plan

[ -n "$RUN_ID" ] || RUN_ID=$(date -u +%Y%m%d-%H%M%S)
run_on_workers() { # ID MODULE
  local words=(bash hra_jax/worker.sh run "$1" "$WORKDIR" "$COMPILE_CACHE")
  words+=(-m "$2" --config "$CONFIG" --workdir "$WORKDIR" "--config.mesh.slices=$SLICES")
  [ ${#OVERRIDES[@]} -eq 0 ] || words+=("${OVERRIDES[@]}")
  on_all_workers "$(print_command "${words[@]}")"
}

[ -n "$DRY_RUN" ] || note "run $RUN_ID on $NAME; its logs go to $WORKDIR/logs/$RUN_ID"
status=0 checked="" goes_on="the run goes on: --run-id $RUN_ID attaches to it"
if [ -z "$NO_CHECK" ]; then
  run_on_workers "$RUN_ID-check" hra_jax.check || status=$?
  if [ "$status" -ne 0 ]; then
    checked=" before it began"
    goes_on="the check before the run goes on: --run-id $RUN_ID attaches to it, and then begins the run"
  fi
fi
if [ "$status" -eq 0 ]; then
  run_on_workers "$RUN_ID" hra_jax.train || status=$?
fi
[ -z "$DRY_RUN" ] || exit 0
case $status in
  0) note "run $RUN_ID finished" ;;
  75) note "run $RUN_ID was told to stop, or its storage did not answer$checked; the same command resumes it" ;;
  127) note "the workers are not set up: launch/tpu/setup.sh comes first" ;;
  255) note "the connection to a worker broke; if it is still there, $goes_on" ;;
  *) note "run $RUN_ID ended with status $status$checked; see the lines above, or $WORKDIR/logs/$RUN_ID" ;;
esac
# resume.sh says it once, at the end.
[ -n "${HRA_CHECKED:-}" ] || note_the_bill
exit "$status"
