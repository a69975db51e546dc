"""Every method on every kind of mesh gives the losses and the weights of one device."""

import jax
import numpy as np
import pytest
from reference import micro as world

from hra_jax.adapters import adapter_folder
from hra_jax.adapters.methods import METHODS
from hra_jax.storage.trees import flatten

STEPS = 20
MESHES = {
    "8 x 1 x 1": {"mesh__data": 8},
    "1 x 8 x 1": {"mesh__data": 1, "mesh__fsdp": 8},
    "2 x 2 x 2": {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
}
# Eight rows of the bank divide over fsdp, so that the bank is split there.
SETTINGS = {
    "steps": STEPS,
    "batch__multiple": 8,
    "batch__seconds": 8.0,
    "adapter__slots": 8,
    "augment__time_masks": 0,
    "augment__freq_masks": 0,
    "optimizer__eps": 1e-2,  # a move is then a smooth function of the gradient, and not its sign
    "optimizer__learning_rate": 1e-2,
}


def settings_of(method: str) -> dict:
    return {"method": "full"} if method == "full" else {"adapter__name": method}


@pytest.fixture(scope="module")
def one_device(micro, tmp_path_factory):
    done = {}

    def train(method: str):
        if method not in done:
            workdir = tmp_path_factory.mktemp("one") / method
            done[method] = world.train(micro.config(**SETTINGS | settings_of(method), mesh__data=1), workdir)
        return done[method]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_a_mesh_gives_the_losses_and_weights_of_one_device(method, mesh, micro, tmp_path, one_device):
    alone = one_device(method)
    config = micro.config(**SETTINGS | settings_of(method) | MESHES[mesh])
    many = world.train(config, tmp_path / "W", devices=8)
    losses = [np.array(world.losses(done.workdir)) for done in (alone, many)]
    assert len(losses[0]) == STEPS and losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    if method == "full":
        return
    if mesh != "8 x 1 x 1":
        bank = jax.tree.leaves(many.run.state.trainable["tasks"])
        assert all(leaf.sharding.spec[0] == "fsdp" for leaf in bank)
    trees = [adapter_folder.read_adapter(done.workdir / "adapter") for done in (alone, many)]
    for path, leaf in flatten({"shared": trees[0].shared, "tasks": dict(trees[0].tasks)}).items():
        other = flatten({"shared": trees[1].shared, "tasks": dict(trees[1].tasks)})[path]
        np.testing.assert_allclose(other, leaf, atol=2e-4, err_msg=path)
