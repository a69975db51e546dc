"""Where weights, banks and what the optimizer keeps for them lie on a mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from reference import tiny

from hra_jax.training import placement, sharding, train_state
from hra_jax.training.optimizer import OptimizerConfig
from hra_jax.training.sharding import leaf_name

SETTINGS = OptimizerConfig(steps=10)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(2, 2, tensor=2)


def named(tree) -> dict:
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def backbone_state() -> train_state.TrainState:
    return train_state.create({"backbone": tiny.random_params(tiny.FEATURES, tiny.ENCODER)}, SETTINGS)


def adapter_state(tasks: int) -> train_state.TrainState:
    return train_state.create(tiny.random_trainable(tiny.ADAPTERS["ffn"], tasks=tasks), SETTINGS)


def placed(mesh, state) -> dict:
    return named(placement.state_shardings(mesh, state, tiny.FEATURES, tiny.ENCODER))


def test_weights_are_split_as_the_rules_say(mesh):
    found = named(placement.backbone_shardings(mesh, tiny.FEATURES, tiny.ENCODER))
    assert found.keys() == named(tiny.random_params(tiny.FEATURES, tiny.ENCODER)).keys()
    assert found["encoder/layers/ff1/up/kernel"].spec == P(None, "fsdp", "tensor")  # layers, embed, mlp
    assert found["encoder/layers/ff1/down/kernel"].spec == P(None, "tensor", "fsdp")  # layers, mlp, embed
    assert found["output/kernel"].spec == P("fsdp", None)  # embed, vocab


def test_what_the_optimizer_keeps_for_a_weight_lies_where_the_weight_lies(mesh):
    state = backbone_state()
    weights = named(placement.backbone_shardings(mesh, tiny.FEATURES, tiny.ENCODER))
    found = placed(mesh, state)
    assert found["step"].spec == P()
    seen = 0
    for name, place in found.items():
        if name.startswith("trainable/backbone/"):
            assert place == weights[name.removeprefix("trainable/backbone/")], name
        for moment in ("/mu/", "/nu/"):
            if moment in name:
                assert place == weights[name.partition(moment)[2]], name
                seen += 1
    assert seen == 2 * len(weights)


def test_a_state_fits_on_the_mesh_and_each_device_holds_its_part_only(mesh):
    state = backbone_state()
    shardings = placement.state_shardings(mesh, state, tiny.FEATURES, tiny.ENCODER)
    moved = named(jax.device_put(state, shardings))
    for name, leaf in named(state).items():
        np.testing.assert_array_equal(moved[name], leaf)
    kernel = moved["trainable/backbone/encoder/layers/ff1/up/kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}


@pytest.mark.parametrize(("tasks", "expected"), [(4, "fsdp"), (5, None)])
def test_a_bank_its_moments_and_counts_are_split_along_tasks_or_copied_together(mesh, tasks, expected):
    found = placed(mesh, adapter_state(tasks))
    rows = {name: place for name, place in found.items() if "/tasks/" in name}
    # Four leaves of an FFN head, three times, and the counts.
    assert len(rows) == 13
    for name, place in rows.items():
        assert (place.spec[0] if place.spec else None) == expected, name
        assert not any(place.spec[1:]), name


def test_the_controller_its_moments_and_the_step_are_copied(mesh):
    for name, place in placed(mesh, adapter_state(4)).items():
        if "/tasks/" not in name:
            assert place.spec == P(), name


def test_on_one_device_everything_is_whole():
    one = sharding.make_mesh(1, devices=jax.devices()[:1])
    state = jax.device_put(
        backbone_state(), placement.state_shardings(one, backbone_state(), tiny.FEATURES, tiny.ENCODER)
    )
    assert all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(state))
