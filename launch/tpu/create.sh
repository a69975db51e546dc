#!/usr/bin/env bash
# Asks for a TPU pod: a queued resource of one or several slices. It returns at once; wait.sh waits for the chips.
#
#   launch/tpu/create.sh --name NAME --zone ZONE --topology v5e:16x16 --config NAME [--slices N] [--spot] [--config.key=value ...]
#
# The configuration is checked first: topology, mesh and buckets that do not fit end with one line and status 2.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
need name zone topology config
check_plan

if [ -z "$RUNTIME_VERSION" ]; then
  case $GENERATION in
    v4) RUNTIME_VERSION=tpu-ubuntu2204-base ;;
    v5e) RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
    v5p) RUNTIME_VERSION=v2-alpha-tpuv5 ;;
    v6e) RUNTIME_VERSION=v2-alpha-tpuv6e ;;
    *) fail "--runtime-version is missing: no default for $GENERATION" ;;
  esac
fi
# Above 64 chips the number of an accelerator type leaves open which cuboid it is.
if [[ $GRID == *x*x* ]] && [ "$CHIPS" -gt 64 ]; then
  words=(--type="$GENERATION" --topology="$GRID")
else
  words=(--accelerator-type="$ACCELERATOR_TYPE")
fi
words+=(--runtime-version="$RUNTIME_VERSION")
if [ "$SLICES" -eq 1 ]; then
  words+=(--node-id="$NAME")
else
  words+=(--node-count="$SLICES" --node-prefix="$NAME")
fi
[ -z "$SPOT" ] || words+=(--spot)
queued_resources create "${words[@]}"
[ -n "$DRY_RUN" ] || note_the_bill
