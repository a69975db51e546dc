"""Read, lay out, place: what each stage does, and what it leaves to the next."""

import jax
import numpy as np
import pytest
from reference import micro as world

from hra_jax.adapters import methods
from hra_jax.config.keys import group
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run.layout import lay_out, open_mesh
from hra_jax.run.read import read_material
from hra_jax.run.stages import prepare


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    world.use_devices(monkeypatch, 1)


def read(config, report):
    names = {name: name for name in ("data", "adapter", "pretrain", "augment")} | {"evaluation": "eval"}
    groups = {argument: group(config, name) for argument, name in names.items()}
    return read_material(group(config, ""), **groups, report=report)


def laid_out(config, material, report):
    names = {"adapter": "adapter", "data": "data", "batch": "batch", "augment": "augment", "evaluation": "eval"}
    settings, groups = group(config, ""), {argument: group(config, name) for argument, name in names.items()}
    return lay_out(
        material,
        open_mesh(group(config, "mesh"), multiple=config.batch.multiple),
        settings=settings,
        **groups,
        own=methods.own_settings(config, config.adapter.name),
        optimizer=group(config, "optimizer", steps=settings.steps),
        report=report,
    )


@pytest.mark.parametrize("changes", [{}, {"adapter__bank": "host"}, {"method": "full"}], ids=["device", "host", "full"])
def test_reading_and_laying_out_put_nothing_on_a_device(micro, changes):
    config, report = micro.config(eval__suite=micro.suite("test"), **changes), DataReport()
    before = {id(array) for array in jax.live_arrays()}
    material = read(config, report)
    layout = laid_out(config, material, report)
    assert {id(array) for array in jax.live_arrays()} <= before
    assert layout.tasks == (() if changes.get("method") == "full" else world.SPEAKERS)
    assert layout.test.suite is material.test and layout.select is material.select is None


@pytest.mark.parametrize(
    "changes",
    [{}, {"adapter__bank": "host", "adapter__slots": 5}, {"adapter__train": "tasks"}, {"method": "full"}],
    ids=["device", "host", "tasks", "full"],
)
def test_what_is_placed_has_the_shapes_and_shardings_that_were_laid_out(micro, tmp_path, changes):
    run = prepare(micro.config(**changes), tmp_path, DataReport())
    programs = run.layout.programs

    def same(array, shape, sharding):
        assert (array.shape, array.dtype) == (shape.shape, shape.dtype)
        assert array.sharding.is_equivalent_to(sharding, array.ndim)

    jax.tree.map(same, run.state, programs.state, programs.shardings)
    if changes.get("method") != "full":
        rows = run.bank.rows(run.state, np.arange(programs.bank_rows))["tasks"]
        expected = jax.tree.map(lambda leaf: leaf.shape, programs.weights["tasks"])
        assert jax.tree.map(lambda leaf: leaf.shape, rows) == expected


def test_what_a_start_would_decide_needs_one_before_anything_is_laid_out(micro):
    with pytest.raises(UserError, match="^adapter.new_task = 'mean': needs adapter.start, which is ''$"):
        read(micro.config(adapter__new_task="mean"), DataReport())
