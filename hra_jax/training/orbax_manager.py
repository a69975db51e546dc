"""How Orbax is set up to keep the checkpoints of a run."""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from hra_jax.training.stored_checkpoint import CHECKSUMS, ITEMS, METRIC, StoredCheckpoint

# How long a write may take: Orbax goes by the clock of the day, which may be set by hours or days meanwhile.
_WRITE_SECONDS = 14 * 24 * 3600
_MOST_LISTINGS = 100  # of one folder, where a run deletes what was listed


class Manager(ocp.CheckpointManager):  # type: ignore[misc]  # Orbax has no types
    """Orbax's manager of the folders of checkpoints, where it would do otherwise than a run needs."""

    def reached_preemption(self, step: int) -> bool:
        """Never: Orbax is not the one to ask."""
        # Orbax also asks from its background thread, with the older step that it is writing. That would turn back the
        # step counter on which the processes agree where to stop (training/preemption.py). Here only the guard asks.
        return False

    def metrics(self, step: int) -> dict[str, float] | None:
        """What was measured of a step; None where nothing was, or what was stored of it is damaged."""
        # Orbax reads the metrics of all checkpoints when it opens their directory: one that is damaged would be the end
        # of every start.
        return StoredCheckpoint(epath.Path(self.directory) / str(step)).metrics()

    _get_metrics = metrics

    def _load_checkpoint_infos(self, skip_metadata_read: bool = False) -> list[Any]:
        # Orbax lists the folders, then asks for the time of each: meanwhile the run whose they are may delete one.
        for left in reversed(range(_MOST_LISTINGS)):
            try:
                return list(super()._load_checkpoint_infos(skip_metadata_read))
            except FileNotFoundError:
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    def forget(self, step: int) -> None:
        """Takes a step for one that there is not."""
        self._checkpoints.delete_if(lambda info: info.step == step)


def options(keep_latest: int, keep_best: int, *, read_only: bool) -> ocp.CheckpointManagerOptions:
    """How a manager keeps checkpoints; arguments as of `Checkpoints`."""

    # Orbax's own best_fn with max_to_keep deletes the newest checkpoints when the metric worsens, and keeps checkpoints
    # without a metric for ever unless told otherwise. best_fn is set all the same: without it no metric is written.
    def score(metrics: Mapping[str, float]) -> float:
        return metrics[METRIC]

    best = policies.BestN(get_metric_fn=score, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False)
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_latest), best]),
        best_fn=score,
        best_mode="min",
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        save_interval_steps=0 if read_only else 1,
        enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(timeout_secs=_WRITE_SECONDS),
    )


def handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """What reads and writes the items of a checkpoint: arrays, and JSON."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    tree, text = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
    for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
        registry.add("state", args, tree)
    for name in (*ITEMS, CHECKSUMS):
        for args in (ocp.args.JsonSave, ocp.args.JsonRestore):
            registry.add(name, args, text)
    return registry


def restore_args(abstract: Any, *, partial: bool = False) -> ocp.args.PyTreeRestore:
    """How arrays are restored.

    Args:
      abstract: their tree, as for `Checkpoints.restore`.
      partial: whether others may be stored beside them.
    """

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    item = jax.tree.map(struct, abstract)
    args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=partial)
