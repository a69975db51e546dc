#!/usr/bin/env bash
# Deletes a queued resource and its nodes. Only then do its chips cost nothing; the work directory stays.
#
#   launch/tpu/delete.sh --name NAME --zone ZONE

# shellcheck source=launch/tpu/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
need name zone
# --force: with its nodes, whatever its state.
queued_resources delete --force
