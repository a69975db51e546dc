#!/usr/bin/env bash
# Trains until the run is finished: whatever is missing is created, and chips that are taken away are asked for again.
#
#   launch/tpu/resume.sh --name NAME --zone ZONE --topology v5e:16x16 --config NAME --workdir gs://B/FOLDER [--spot] [--max-restarts N]
#                        [--config.key=value ...]
#
# One round is create, wait, set up, run. Where a node is gone, the queued resource is deleted and the next round begins;
# after status 75 (told to stop, or storage that did not answer) with all nodes there, it begins on the same chips, after
# a pause that grows. The run goes on from its last checkpoint. Any other failure ends it: a mistake would only repeat.
#
# Exit status: that of the run; 75 after --max-restarts.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "$0")/common.sh"
flags=("$@")
parse "$@"
need name zone topology config workdir
check_plan
export HRA_CHECKED=$FACTS

act() { # NAME FLAG...
  local name=$1
  shift
  "$HERE/$name.sh" "${flags[@]}" "$@"
}

if [ -n "$DRY_RUN" ]; then
  echo "# where there is no $NAME yet"
  for name in create wait setup; do act "$name"; done
  echo "# the run"
  act run
  echo "# where a node is gone, at most $MAX_RESTARTS times; then from the start. After status 75 alone: the run again"
  act delete
  exit 0
fi

said=$(mktemp)
trap 'rm -f "$said"' EXIT

remove() {
  local try status=0
  # What is just being taken away cannot be deleted yet.
  for ((try = 0; try < 10; try++)); do
    [ "$try" -eq 0 ] || sleep "$POLL"
    [ "$(state "$said")" != MISSING ] || return 0
    status=0
    act delete || status=$?
    [ "$status" -ne 0 ] || return 0
  done
  return "$status"
}

# Until the chips are there and set up.
prepare() {
  case $(state "$said") in
    ACTIVE) return 0 ;;
    UNKNOWN)
      note "gcloud does not say the state of $NAME: $(tail -n 1 "$said")"
      return 255
      ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) ;;
    MISSING) act create || return $? ;;
    *)
      remove || return $?
      act create || return $?
      ;;
  esac
  act wait || return $?
  act setup || return $?
}

# Whether a node was taken away. It may take a while to show: what is left of the run ends when it misses the others.
gone() {
  local look node now
  for ((look = 0; look < 4; look++)); do
    [ "$look" -eq 0 ] || sleep "$POLL"
    case $(state "$said") in
      ACTIVE) ;;
      UNKNOWN) continue ;;
      *) return 0 ;;
    esac
    for node in $(names_of_nodes); do
      now=$(run gcloud compute tpus tpu-vm describe "$node" "${WHERE[@]}" "--format=value(state)" 2>"$said") || {
        ! grep -q NOT_FOUND "$said" || return 0
        continue
      }
      [ "$now" = READY ] || return 0
    done
  done
  return 1
}

restarts=0 id=$RUN_ID installed="" pause=$POLL
while true; do
  status=0 started="" again="" stays=""
  prepare || status=$?
  if [ "$status" -eq 0 ]; then
    [ -n "$id" ] || id=$(date -u +%Y%m%d-%H%M%S)
    started=1
    act run --run-id "$id" || status=$?
  fi
  case $status in
    0 | 2 | 3 | 4) break ;;
    127)
      # A pod that was there before may not be set up.
      [ -z "$installed" ] || break
      installed=1 id="" status=0
      act setup || status=$?
      [ "$status" -eq 0 ] || break
      continue
      ;;
    75)
      again="the run was told to stop, or its chips were taken away"
      [ -z "$started" ] || gone || again="the run was told to stop, or its storage did not answer" stays=1
      ;;
    *)
      if [ -n "$started" ] && gone; then
        again="a node is gone"
      elif [ "$status" -ne 255 ] || [ -z "$id" ]; then
        break
      fi
      ;;
  esac
  if [ "$restarts" -ge "$MAX_RESTARTS" ]; then
    note "given up after $restarts restarts; the same command goes on"
    status=75
    break
  fi
  restarts=$((restarts + 1))
  if [ -z "$again" ]; then
    note "only the connection broke: attaching to run $id again"
    continue
  fi
  note "restart $restarts of at most $MAX_RESTARTS: $again"
  id=""
  status=0
  if [ -n "$stays" ]; then
    sleep "$pause"
    pause=$((pause < 10 * POLL ? 2 * pause : pause))
    continue
  fi
  pause=$POLL
  remove || status=$?
  [ "$status" -eq 0 ] || break
done
[ "$(state "$said")" = MISSING ] || note_the_bill
exit "$status"
