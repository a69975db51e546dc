#!/usr/bin/env bash
# Installs the package and JAX for TPUs on all workers, in an environment of its own; again after a change of the code.
#
#   launch/tpu/setup.sh --name NAME --zone ZONE --topology v5e:16x16 [--slices N] [--source URL] [--python VERSION]
#
# Without --source it copies this checkout, changes that are not committed included. The TPU VMs' own Python may be too
# old, so uv brings the version that --python names.

# shellcheck source=launch/tpu/common.sh
source "$(dirname "$0")/common.sh"
parse "$@"
need name zone topology
read_topology

files=("$HERE/worker.sh")
if [ -n "$SOURCE" ]; then
  what=$(quote "hra_jax[tpu] @ $SOURCE")
else
  # shellcheck disable=SC2016 # the worker's shell puts its own home there
  what='"hra_jax[tpu] @ file://$HOME/hra_jax/hra_jax.tar.gz"'
  if [ -n "$DRY_RUN" ]; then
    files+=(hra_jax.tar.gz)
  else
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT
    mkdir "$stage/hra_jax-source"
    for name in setup.py pyproject.toml MANIFEST.in LICENSE README.md hra_jax configs; do
      cp -R "$ROOT/$name" "$stage/hra_jax-source/"
    done
    find "$stage" -name __pycache__ -prune -exec rm -rf {} +
    tar -czf "$stage/hra_jax.tar.gz" -C "$stage" hra_jax-source
    files+=("$stage/hra_jax.tar.gz")
  fi
fi
on_all_workers "mkdir -p hra_jax"
copy_to_all_workers "${files[@]}" hra_jax/
on_all_workers "bash hra_jax/worker.sh install $(quote "$WORKER_PYTHON") $what"
