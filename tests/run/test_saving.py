"""Which checkpoint is taken while a run saves new ones and deletes old ones."""

import jax.numpy as jnp
import pytest

from hra_jax.errors import DamagedError, UserError
from hra_jax.run import saving
from hra_jax.training.checkpoints import Checkpoints


@pytest.fixture
def run(tmp_path):
    """A run that keeps one checkpoint."""
    with Checkpoints(tmp_path / "checkpoints", keep_latest=1, keep_best=0, every_steps=1) as checkpoints:
        save(checkpoints, 1)
        yield checkpoints


@pytest.fixture
def reader(run):
    with Checkpoints(run.directory, keep_latest=1, keep_best=0, every_steps=1, read_only=True) as checkpoints:
        yield checkpoints


def save(checkpoints, step):
    checkpoints.save(step, {"step": jnp.int32(step)}, position={"consumed": step}, best={})
    checkpoints.wait()
    assert [path.name for path in checkpoints.directory.iterdir()] == [str(step)]


def overtaken(run, reader, *, until):
    """Reads a checkpoint that the run replaces meanwhile, as long as it is older than `until`."""

    def read(number):
        if number < until:
            save(run, number + 1)
        state, position, _ = reader.restore(number, {"step": jnp.int32(0)})
        return int(state["step"]), position

    return read


def test_where_the_run_deletes_a_checkpoint_that_is_being_read_the_newest_of_then_is_taken(run, reader, capsys):
    assert saving.take(reader, "last", overtaken(run, reader, until=3)) == (3, (3, {"consumed": 3}))
    first, second = capsys.readouterr().out.splitlines()
    assert "checkpoint 1 cannot be read: " in first and first.endswith("; taking checkpoint 2")
    assert "checkpoint 2 cannot be read: " in second and second.endswith("; taking checkpoint 3")


def test_a_run_that_is_always_faster_is_given_up_after_some_checkpoints_with_a_line(run, reader, monkeypatch):
    monkeypatch.setattr(saving, "_MOST_TRIED", 3)
    with pytest.raises(UserError, match="checkpoint 3 cannot be read: .*; 3 checkpoints were tried$"):
        saving.take(reader, "last", overtaken(run, reader, until=9))


def test_a_checkpoint_that_is_asked_for_by_its_number_has_no_other_in_its_place(run, reader):
    with pytest.raises(DamagedError, match="checkpoint 1 cannot be read: "):
        saving.take(reader, 1, overtaken(run, reader, until=9))
    reader.refresh()
    with pytest.raises(UserError, match="there is no checkpoint 1; allowed are last, best, 2$"):
        saving.take(reader, 1, lambda number: None)


def test_where_all_are_damaged_the_line_says_that_there_is_no_other(run, capsys):
    (run.directory / "1" / "position" / "metadata").write_text("{}")
    with pytest.raises(UserError, match="position/metadata is not what was written; there is no other checkpoint$"):
        saving.take(run, "last", lambda number: run.restore(number, {"step": jnp.int32(0)}))
    assert capsys.readouterr().out == ""
