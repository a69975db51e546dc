# What the scripts of this folder share: their flags, the check before anything is created, and how gcloud is called.
# shellcheck shell=bash disable=SC2034 # the variables are for the scripts that read this file

set -euo pipefail

SCRIPT=launch/tpu/${0##*/}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)

NAME="" ZONE="" PROJECT="" TOPOLOGY="" SLICES=1 RUNTIME_VERSION="" SPOT="" CONFIG="" WORKDIR="" COMPILE_CACHE=""
SOURCE="" WORKER_PYTHON=3.12 RUN_ID="" POLL=30 TIMEOUT=0 MAX_RESTARTS=100 STOP="" NO_CHECK="" DRY_RUN=""
OVERRIDES=()

# The interpreter of this machine; it only checks the plan.
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$ROOT/.venv/bin/python" ] || PYTHON=$ROOT/.venv/bin/python
fi

fail() {
  echo "$SCRIPT: error: $*" >&2
  exit 2
}

note() {
  echo "$SCRIPT: $*" >&2
}

show_help() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  cat <<'END'

Flags, the same for all scripts of this folder; each script uses those that it needs:
  --name NAME               of the queued resource, and of its nodes (NAME, or NAME-0, NAME-1, ... with several slices)
  --zone ZONE               such as us-west4-a
  --project PROJECT         default: gcloud's
  --topology T              of a slice, such as v5e:16x16
  --slices N                default: 1
  --runtime-version V       software of the TPU VMs; default: the one for the chip's generation
  --spot                    chips that may be taken away at any time
  --config NAME             a ready-made configuration, or gs://.../file.py
  --workdir gs://B/FOLDER   work directory of the run
  --compile-cache gs://...  default: compile_cache beside the work directory
  --config.key=value        overrides, passed on to the training command
  --source URL              of the package, such as git+https://...; default: this checkout
  --python VERSION          of the workers' environment; default: 3.12
  --run-id ID               of a run on the workers; the id of one that is going on attaches to it
  --poll SECONDS            between two looks at the state; default: 30
  --timeout SECONDS         for waiting; default: 0, without end
  --max-restarts N          of resume.sh; default: 100
  --no-check                start the run without hra_jax.check, which looks at devices, bucket and data before it
  --dry-run                 print what would run, a command a line; touch nothing
  --help                    this text
PYTHON names the interpreter of this machine that checks the plan; default: .venv/bin/python of the checkout, or python3.
END
}

# Sets the variables above from the command line.
parse() {
  local flag
  while [ $# -gt 0 ]; do
    flag=$1
    case $flag in
      --help | -h)
        show_help
        exit 0
        ;;
      --dry-run) DRY_RUN=1 ;;
      --spot) SPOT=1 ;;
      --no-check) NO_CHECK=1 ;;
      --stop)
        [ "$SCRIPT" = launch/tpu/run.sh ] || fail "--stop: only launch/tpu/run.sh takes it"
        STOP=1
        ;;
      --config.mesh.slices=*) fail "$flag: --slices sets mesh.slices" ;;
      --config.*=*) OVERRIDES+=("$flag") ;;
      --config.*) fail "$flag: a value is missing; allowed: $flag=VALUE" ;;
      --*=*)
        shift
        set -- "${flag%%=*}" "${flag#*=}" "$@"
        continue
        ;;
      --name | --zone | --project | --topology | --slices | --runtime-version | --config | --workdir | --compile-cache | \
        --source | --python | --run-id | --poll | --timeout | --max-restarts)
        if [ $# -lt 2 ] || [ "${2#--}" != "$2" ]; then fail "$flag: a value is missing"; fi
        set_flag "$flag" "$2"
        shift
        ;;
      *) fail "unknown flag '$flag'; --help lists what is allowed" ;;
    esac
    shift
  done
  [ -z "$NAME" ] || [[ $NAME =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
    fail "--name '$NAME'; allowed: small letters, digits and -, a letter first"
  whole_number slices "$SLICES" 1
  whole_number poll "$POLL" 0
  whole_number timeout "$TIMEOUT" 0
  whole_number max-restarts "$MAX_RESTARTS" 0
  [ -z "$RUN_ID" ] || [[ $RUN_ID =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] ||
    fail "--run-id '$RUN_ID'; allowed: letters, digits, . _ -"
  WHERE=(--zone="$ZONE" --quiet)
  [ -z "$PROJECT" ] || WHERE+=(--project="$PROJECT")
}

set_flag() {
  case $1 in
    --name) NAME=$2 ;;
    --zone) ZONE=$2 ;;
    --project) PROJECT=$2 ;;
    --topology) TOPOLOGY=$2 ;;
    --slices) SLICES=$2 ;;
    --runtime-version) RUNTIME_VERSION=$2 ;;
    --config) CONFIG=$2 ;;
    --workdir) WORKDIR=${2%/} ;;
    --compile-cache) COMPILE_CACHE=$2 ;;
    --source) SOURCE=$2 ;;
    --python) WORKER_PYTHON=$2 ;;
    --run-id) RUN_ID=$2 ;;
    --poll) POLL=$2 ;;
    --timeout) TIMEOUT=$2 ;;
    --max-restarts) MAX_RESTARTS=$2 ;;
  esac
}

whole_number() { # FLAG VALUE LOWEST
  if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || [ "$2" -lt "$3" ]; then
    fail "--$1 '$2'; allowed: a whole number of at least $3"
  fi
}

# Ends where one of these flags was not given.
need() {
  local flag variable
  for flag in "$@"; do
    variable=$(echo "$flag" | tr 'a-z-' 'A-Z_')
    [ -n "${!variable}" ] || fail "--$flag is missing; --help lists the flags"
  done
  [ -z "$CONFIG" ] || check_config
  [ -z "$WORKDIR" ] || check_workdir
}

check_config() {
  # Workers have what setup.sh installs there, and no other file of this machine.
  [[ $CONFIG =~ ^[A-Za-z0-9_-]+$ || $CONFIG == gs://*.py ]] ||
    fail "--config '$CONFIG'; allowed: the name of a file in configs/, which setup.sh installs, or gs://.../file.py"
}

check_workdir() {
  [[ $WORKDIR == gs://*/* ]] || fail "--workdir '$WORKDIR': workers share no disk; allowed: gs://BUCKET/FOLDER"
  [ -n "$COMPILE_CACHE" ] || COMPILE_CACHE=${WORKDIR%/*}/compile_cache
}

# Sets GENERATION, GRID, CHIPS and HOSTS of a slice, ACCELERATOR_TYPE, and FACTS, where they are from.
read_topology() {
  local key value
  # HRA_CHECKED comes from resume.sh, which asks once for all the scripts that it calls.
  FACTS=${HRA_CHECKED:-}
  [ -n "$FACTS" ] || FACTS=$("$PYTHON" -m hra_jax.tpu.topologies "$TOPOLOGY") || exit $?
  while IFS='=' read -r key value; do
    case $key in
      generation) GENERATION=$value ;;
      grid) GRID=$value ;;
      chips) CHIPS=$value ;;
      hosts) HOSTS=$value ;;
      accelerator_type) ACCELERATOR_TYPE=$value ;;
    esac
  done <<<"$FACTS"
  [ "$GENERATION" != cpu ] || fail "--topology '$TOPOLOGY' is no TPU; allowed: a name such as v5e:16x16"
}

# Ends with one line where topology, mesh and buckets do not fit. Call it before anything is created or started.
check_plan() {
  local status=0
  read_topology
  [ -z "${HRA_CHECKED:-}" ] || return 0
  local plan=("$PYTHON" -m hra_jax.aot --config "$CONFIG" --topology "$TOPOLOGY" --plan "--config.mesh.slices=$SLICES")
  [ ${#OVERRIDES[@]} -eq 0 ] || plan+=("${OVERRIDES[@]}")
  if [ -n "$DRY_RUN" ]; then
    "${plan[@]}" >/dev/null || status=$?
  else
    "${plan[@]}" || status=$?
  fi
  [ "$status" -eq 0 ] || exit "$status"
  [ -z "$DRY_RUN" ] || print_command "${plan[@]}"
}

quote() {
  case $1 in
    "" | *[!A-Za-z0-9_./:=@%+,-]*) printf "'%s'" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf %s "$1" ;;
  esac
}

# The words as a line that a shell reads as these words.
print_command() {
  local word separator=""
  for word in "$@"; do
    printf %s "$separator"
    quote "$word"
    separator=" "
  done
  echo
}

# Runs a command, or prints it.
run() {
  if [ -n "$DRY_RUN" ]; then
    print_command "$@"
  else
    # No stdin: ssh would read what the caller has still to read.
    "$@" </dev/null
  fi
}

queued_resources() { # ACT ARGUMENT...
  local act=$1
  shift
  run gcloud compute tpus queued-resources "$act" "$NAME" "${WHERE[@]}" "$@"
}

# Runs a command line on every worker of every slice, at the same time.
on_all_workers() {
  # Without these, ssh never notices that the machine at the other end is gone.
  local words=(--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4 --ssh-flag=-oConnectTimeout=30)
  words+=(--worker=all "--command=$1")
  if [ "$SLICES" -eq 1 ]; then
    run gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" "${words[@]}"
  else
    # Its default batch is 64 workers, the others only after them: workers that wait for each other would never start.
    queued_resources ssh --node=all "--batch-size=$((SLICES * HOSTS))" "${words[@]}"
  fi
}

copy_to_all_workers() { # FILE... FOLDER
  local files=("${@:1:$#-1}") folder=${*: -1}
  if [ "$SLICES" -eq 1 ]; then
    run gcloud compute tpus tpu-vm scp "${files[@]}" "$NAME:$folder" "${WHERE[@]}" --worker=all
  else
    run gcloud compute tpus queued-resources scp "${files[@]}" "$NAME:$folder" "${WHERE[@]}" --node=all --worker=all
  fi
}

# Prints the state of the queued resource: ACTIVE, ...; MISSING where there is none, UNKNOWN where gcloud does not say.
# What gcloud said is then in the file that the argument names.
state() {
  local now
  if now=$(queued_resources describe "--format=value(state.state)" 2>"$1"); then
    echo "${now:-UNKNOWN}"
  elif grep -q NOT_FOUND "$1"; then
    echo MISSING
  else
    echo UNKNOWN
  fi
}

names_of_nodes() {
  local number
  if [ "$SLICES" -eq 1 ]; then
    echo "$NAME"
  else
    for ((number = 0; number < SLICES; number++)); do echo "$NAME-$number"; done
  fi
}

note_the_bill() {
  local project=""
  [ -z "$PROJECT" ] || project=" --project $PROJECT"
  note "the $((SLICES * CHIPS)) chips of $NAME are billed until launch/tpu/delete.sh --name $NAME --zone $ZONE$project"
}
