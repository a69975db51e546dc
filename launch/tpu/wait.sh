#!/usr/bin/env bash
# Waits until the chips of a queued resource are there, with a line whenever its state changes.
#
#   launch/tpu/wait.sh --name NAME --zone ZONE [--poll SECONDS] [--timeout SECONDS]
#
# Exit status: 0 ACTIVE; 1 FAILED, no longer there, or --timeout is over; 75 SUSPENDED: the chips were taken away.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
need name zone

if [ -n "$DRY_RUN" ]; then
  queued_resources describe "--format=value(state.state)"
  exit 0
fi
said=$(mktemp)
trap 'rm -f "$said"' EXIT
last="" unknown=0
while true; do
  now=$(state "$said")
  [ "$now" = "$last" ] || note "$NAME is $now, ${SECONDS} s after the first look"
  last=$now
  case $now in
    ACTIVE) exit 0 ;;
    SUSPENDING | SUSPENDED)
      note "the chips of $NAME were taken away; delete.sh, then create.sh asks again"
      exit 75
      ;;
    FAILED)
      reason=$(queued_resources describe "--format=value(state.failedData.error.message)" 2>/dev/null) || reason=""
      note "$NAME failed: ${reason:-gcloud gives no reason}; delete.sh, then create.sh asks again"
      exit 1
      ;;
    MISSING | DELETING)
      note "there is no $NAME in $ZONE to wait for; create.sh asks for one"
      exit 1
      ;;
    UNKNOWN)
      unknown=$((unknown + 1))
      if [ "$unknown" -ge 5 ]; then
        note "gcloud does not say the state of $NAME: $(tail -n 1 "$said")"
        exit 1
      fi
      ;;
    *) unknown=0 ;;
  esac
  if [ "$TIMEOUT" -gt 0 ] && [ "$SECONDS" -ge "$TIMEOUT" ]; then
    note "$NAME is still $now after $TIMEOUT s; it stays in the queue until delete.sh"
    exit 1
  fi
  sleep "$POLL"
done
