"""Where the frozen weights and the training state live on the mesh."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding

from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.training import sharding
from hra_jax.training.train_state import TrainState


def backbone_axes(features: FeatureConfig, encoder: EncoderConfig) -> tuple[Any, Any]:
    """Logical axes of every backbone weight, as a tree of PartitionSpec, and the tree of shapes."""
    boxed = backbone_folder.abstract_params(features, encoder)
    return nn.get_partition_spec(boxed), nn.unbox(boxed)


def backbone_shardings(mesh: Mesh, features: FeatureConfig, encoder: EncoderConfig) -> Any:
    """Shardings of the backbone's weights, as a tree."""
    return sharding.tree_shardings(mesh, *backbone_axes(features, encoder))


def _keys(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path)


def state_shardings(mesh: Mesh, state: TrainState, features: FeatureConfig, encoder: EncoderConfig) -> TrainState:
    """Shardings of a TrainState (arrays or shapes), in its structure.

    A weight of the backbone goes where the rules put its logical axes; a bank is split along `task`; what the optimizer
    keeps for a weight lies where the weight lies; everything else is replicated.
    """
    weights: dict[tuple[str, ...], NamedSharding] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.trainable.get("tasks", {})):
        axes = ("task",) + (None,) * (leaf.ndim - 1)
        weights[("tasks", *_keys(path))] = sharding.sharding_for(mesh, axes, shape=leaf.shape)
    if "backbone" in state.trainable:
        backbone = backbone_shardings(mesh, features, encoder)
        for path, leaf in jax.tree_util.tree_leaves_with_path(backbone):
            weights[("backbone", *_keys(path))] = leaf

    # The longest path first: `a/output/kernel` must not be taken for `output/kernel`.
    longest_first = sorted(weights.items(), key=lambda item: -len(item[0]))

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = _keys(path)
        if keys[-2:] == ("tasks", "count"):
            return sharding.sharding_for(mesh, ("task",), shape=leaf.shape)
        # optimizer/tasks/mu/<path> and optimizer/backbone/0/mu/<path> hold one value per weight.
        for name, found in longest_first:
            if keys[1:2] == name[:1] and keys[-len(name) + 1 :] == name[1:] and leaf.ndim:
                return found
        return sharding.replicated(mesh)

    shardings: TrainState = jax.tree_util.tree_map_with_path(place, state)
    return shardings
