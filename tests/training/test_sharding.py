"""The mesh and the rule table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from hra_jax.errors import UserError
from hra_jax.training import sharding

needs_eight = pytest.mark.skipif(
    jax.device_count() != 8, reason="needs 8 fake devices (XLA_FLAGS of tests/conftest.py)"
)


def test_one_device_is_a_mesh_of_one_and_splits_nothing():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"slices": 1, "data": 1, "fsdp": 1, "tensor": 1}
    placed = sharding.sharding_for(mesh, ("embed", "mlp"), shape=(5, 7))
    assert placed.shard_shape((5, 7)) == (5, 7)


@needs_eight
def test_minus_one_takes_the_devices_that_are_left():
    assert dict(sharding.make_mesh(data=-1, fsdp=2).shape) == {"slices": 1, "data": 4, "fsdp": 2, "tensor": 1}
    assert dict(sharding.make_mesh(data=2, tensor=-1).shape) == {"slices": 1, "data": 2, "fsdp": 1, "tensor": 4}
    assert dict(sharding.make_mesh(slices=2, data=-1, fsdp=2).shape) == {
        "slices": 2,
        "data": 2,
        "fsdp": 2,
        "tensor": 1,
    }


@needs_eight
@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3}, ["mesh.data = 3", "multiply to 3", "8 devices"]),
        ({"data": 16}, ["mesh.data = 16", "multiply to 16", "8 devices"]),
        ({"data": -1, "fsdp": 3}, ["mesh.fsdp = 3", "does not divide the 8 devices"]),
        ({"data": -1, "fsdp": -1}, ["mesh.data = -1", "mesh.fsdp = -1", "only one"]),
        ({"data": 8, "tensor": 0}, ["mesh.tensor = 0", "at least 1"]),
        ({"data": -2}, ["mesh.data = -2", "at least 1"]),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_an_error_with_the_numbers(sizes, words):
    with pytest.raises(UserError) as error:
        sharding.make_mesh(**sizes)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@needs_eight
def test_every_device_holds_its_own_rows_and_all_rows_are_there():
    mesh = sharding.make_mesh(data=2, fsdp=2, slices=2)
    batch = {"waveform": np.arange(48, dtype=np.float32).reshape(16, 3), "task": np.arange(16, dtype=np.int32)}
    placed = sharding.shard_batch(batch, mesh)
    for name, value in batch.items():
        np.testing.assert_array_equal(np.asarray(placed[name]), value)
        rows = sorted(shard.index[0].start for shard in placed[name].addressable_shards)
        assert rows == [0, 2, 4, 6, 8, 10, 12, 14]
        assert {shard.data.shape[0] for shard in placed[name].addressable_shards} == {2}
    np.testing.assert_array_equal(sharding.local_rows(mesh, 16), np.arange(16))


@needs_eight
def test_tensor_parallel_devices_hold_the_same_rows():
    mesh = sharding.make_mesh(data=2, tensor=4)
    placed = sharding.shard_batch({"x": np.arange(4, dtype=np.float32)}, mesh)["x"]
    assert sorted(shard.index[0].start for shard in placed.addressable_shards) == [0, 0, 0, 0, 2, 2, 2, 2]


@needs_eight
def test_rows_that_cannot_be_split_are_an_error_with_the_numbers():
    with pytest.raises(UserError, match=r"'x'.* 6 rows .* 8 parts"):
        sharding.shard_batch({"x": np.zeros((6, 2), np.float32)}, sharding.make_mesh())


@needs_eight
def test_a_mesh_that_does_not_divide_the_batch_multiple_is_an_error_with_both_numbers():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    sharding.check_batch_multiple(mesh, 8)
    with pytest.raises(
        UserError, match=r"batch\.multiple = 6: must be a multiple of 4 .*mesh\.data = 2.*mesh\.fsdp = 2"
    ):
        sharding.check_batch_multiple(mesh, 6)


@needs_eight
def test_weights_are_split_as_the_table_says():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    placed = sharding.sharding_for(mesh, ("layers", "embed", "mlp"), shape=(3, 8, 10))
    assert placed.shard_shape((3, 8, 10)) == (3, 4, 5)


@needs_eight
def test_a_mesh_axis_serves_the_first_dimension_that_asks_for_it():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    activation = sharding.sharding_for(mesh, ("batch", "time", "embed"), shape=(8, 5, 6))
    assert activation.shard_shape((8, 5, 6)) == (1, 5, 6)


@needs_eight
def test_a_dimension_that_does_not_divide_is_an_error_that_names_leaf_dimension_and_both_numbers():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    tree = {"layers": {"up": jax.ShapeDtypeStruct((6, 12), jnp.float32)}}
    with pytest.raises(
        UserError, match=r"layers/up: dimension 0 \(embed\) of size 6 .* multiple of 4 \(mesh\.fsdp = 4\)"
    ):
        sharding.tree_shardings(mesh, {"layers": {"up": ("embed", "mlp")}}, tree)


@needs_eight
def test_any_number_of_tasks_fits_any_mesh():
    mesh = sharding.make_mesh(data=2, fsdp=4)
    assert sharding.sharding_for(mesh, ("task", None), shape=(8, 3)).shard_shape((8, 3)) == (2, 3)
    assert sharding.sharding_for(mesh, ("task", None), shape=(6, 3)).shard_shape((6, 3)) == (6, 3)


def test_an_unknown_axis_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"scale: unknown axis name 'embd'; known are .*embed"):
        sharding.sharding_for(sharding.make_mesh(), ("embd",), leaf="scale")


def test_a_name_too_few_is_an_error_that_names_the_leaf():
    with pytest.raises(ValueError, match=r"kernel: axes \('embed',\) do not fit the shape \(4, 4\)"):
        sharding.tree_shardings(sharding.make_mesh(), {"kernel": ("embed",)}, {"kernel": np.zeros((4, 4))})


def test_a_tree_of_other_structure_is_an_error():
    with pytest.raises(ValueError, match="kernel|key"):
        sharding.tree_shardings(sharding.make_mesh(), {"other": ("embed",)}, {"kernel": np.zeros(8)})


@needs_eight
def test_scalars_and_unnamed_leaves_are_copied_and_partition_specs_may_be_short():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    shapes = {"count": np.zeros(()), "rows": (np.zeros((8, 4)), np.zeros((8, 4)))}
    placed = sharding.tree_shardings(mesh, {"count": (), "rows": (None, PartitionSpec("embed"))}, shapes)
    assert placed["count"].is_fully_replicated
    assert placed["rows"][0].is_fully_replicated
    assert placed["rows"][1].shard_shape((8, 4)) == (4, 4)


@needs_eight
def test_a_constraint_reaches_the_compiled_program():
    mesh = sharding.make_mesh(data=4, fsdp=2)

    def loss(x, w, *, constrained):
        # The outer product with a split weight leaves the compiler free; without a constraint nothing splits its rows.
        y = jnp.tanh(x[:, None] * w[None, :])
        return sharding.constrain(y, mesh, ("batch", "embed")) if constrained else y

    def rows_per_device(constrained):
        replicated = sharding.replicated(mesh)
        function = jax.jit(lambda x, w: loss(x, w, constrained=constrained), in_shardings=(replicated, replicated))
        y = function(jnp.ones(16), jnp.ones(4))
        return y.sharding.shard_shape(y.shape)

    assert rows_per_device(True) == (2, 4)
    assert rows_per_device(False) == (16, 4)


@needs_eight
def test_a_constraint_changes_no_value_and_its_gradient_is_constrained_too():
    mesh = sharding.make_mesh(data=4, fsdp=2)
    x = jnp.arange(16.0).reshape(8, 2)
    np.testing.assert_array_equal(jax.jit(lambda v: sharding.constrain(v, mesh, ("batch", None)))(x), x)
    gradient = jax.jit(jax.grad(lambda v: (sharding.constrain(v, mesh, ("batch", None)) ** 2).sum()))(x)
    np.testing.assert_array_equal(gradient, 2 * x)
    assert gradient.sharding.shard_shape(gradient.shape) == (1, 2)


@needs_eight
def test_weights_that_this_process_alone_holds_still_fit_into_one_program():
    mesh = sharding.make_mesh(data=1, fsdp=8)
    shardings = {
        "split": sharding.sharding_for(mesh, ("embed",), shape=(8,)),
        "whole": sharding.sharding_for(mesh, (None,), shape=(8,)),
    }
    placed = {name: sharding.place(np.arange(8.0), where) for name, where in shardings.items()}
    found = jax.jit(lambda tree: tree["split"] + tree["whole"])(sharding.by_itself(placed))
    assert found.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_without_a_mesh_a_constraint_is_nothing():
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, None, ("batch", "embed")) is x
