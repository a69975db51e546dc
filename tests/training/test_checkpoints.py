"""Checkpoints: what comes back, what is kept, and what a killed or failing process leaves behind."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hra_jax.errors import UserError
from hra_jax.training import sharding
from hra_jax.training.checkpoints import Checkpoints

needs_eight = pytest.mark.skipif(jax.device_count() != 8, reason="needs the 8 fake devices of tests/conftest.py")


def open_checkpoints(path, **changes):
    return Checkpoints(path, **({"keep_latest": 1, "keep_best": 1, "every_steps": 10} | changes))


def make_state(step, *, tasks=2):
    """A state of the usual containers: dicts, a NamedTuple of optax, an empty node, a scalar."""
    trainable = {
        "shared": {"kernel": jnp.arange(12.0).reshape(4, 3) + step},
        "tasks": {"head": jnp.full((tasks, 3), step, jnp.bfloat16)},
    }
    return {
        "step": jnp.int32(step),
        "trainable": trainable,
        "optimizer": optax.adamw(1e-3).init(trainable["shared"]),
        "nothing": {},
    }


def abstract(tree, place=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place or x.sharding), tree)


def save(checkpoints, step, *, wer=None, state=None, **extra):
    metrics = None if wer is None else {"wer_macro": wer}
    state = make_state(step) if state is None else state
    extra = {"position": {"consumed": step}, "best": {"x": wer}, "force": True} | extra
    return checkpoints.save(step, state, metrics=metrics, **extra)


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_what_was_saved_comes_back_bit_for_bit_with_its_containers(tmp_path):
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    odd[0] = np.uint32(0x7FC12345).view(np.float32)  # a NaN with a payload
    state = make_state(7) | {"odd": jnp.asarray(odd), "mask": jnp.array([True, False]), "count": jnp.uint8(3)}
    position = {"consumed": 12, "waiting": [[0, 5], [1, 7]]}
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 7, state=state, position=position, best={"bob": [0.5, 7]})
        restored, where, best = checkpoints.restore("last", abstract(state))
    assert_same_bits(restored, state)
    assert isinstance(restored["optimizer"][0], optax.ScaleByAdamState)
    assert (where, best) == (position, {"bob": [0.5, 7]})


def test_another_process_reads_the_same_bytes(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 3)
    with open_checkpoints(tmp_path) as first, open_checkpoints(tmp_path, read_only=True) as second:
        one, _, _ = first.restore(3, abstract(make_state(0)))
        two, _, _ = second.restore(3, abstract(make_state(0)))
    assert_same_bits(one, two)
    assert_same_bits(one, make_state(3))


@needs_eight
def test_a_checkpoint_is_restored_on_any_mesh(tmp_path):
    wide = sharding.make_mesh(data=1, fsdp=8)
    value = jax.device_put(np.arange(64, dtype=np.float32).reshape(16, 4), sharding.sharding_for(wide, ("embed", None)))
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, state={"w": value})
        for mesh in (
            sharding.make_mesh(data=2, fsdp=4),
            sharding.make_mesh(data=4, tensor=2),
            sharding.make_mesh(devices=jax.devices()[:1]),
        ):
            place = sharding.sharding_for(mesh, ("embed", "mlp"))
            restored, _, _ = checkpoints.restore(1, {"w": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=place)})
            assert restored["w"].sharding.is_equivalent_to(place, 2)
            assert_same_bits(restored, {"w": np.asarray(value)})


def test_a_state_donated_right_after_save_is_saved_as_it_was(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"w": jnp.zeros((512, 1024)), "n": jnp.int32(0)}
    with open_checkpoints(tmp_path, keep_latest=9) as checkpoints:
        for step in range(1, 4):
            state = advance(state)
            save(checkpoints, step, state=state)
        for _ in range(5):
            state = advance(state)
        for step in range(1, 4):
            restored, _, _ = checkpoints.restore(step, abstract(state))
            assert_same_bits(restored, {"w": np.full((512, 1024), step, np.float32), "n": np.int32(step)})


def test_tables_changed_right_after_save_are_saved_as_they_were(tmp_path):
    position, best = {"waiting": [0]}, {"bob": 0}
    with open_checkpoints(tmp_path, keep_latest=9) as checkpoints:
        for step in range(1, 6):  # several, for it is a race
            position["waiting"].append(step)
            best["bob"] = step
            save(checkpoints, step, position=position, best=best)
        position["waiting"].append(6)
        best["bob"] = 6
        for step in range(1, 6):
            _, where, table = checkpoints.restore(step, abstract(make_state(0)))
            assert (where, table) == ({"waiting": list(range(step + 1))}, {"bob": step})


def test_step_1_is_saved_and_then_every_nth_and_none_twice(tmp_path):
    with open_checkpoints(tmp_path, keep_latest=99, every_steps=4) as checkpoints:
        started = [step for step in range(1, 13) if save(checkpoints, step, force=False)]
        assert started == [1, 4, 8, 12]
        assert not save(checkpoints, 12, wer=0.1)
        assert save(checkpoints, 13)
        assert checkpoints.all_steps() == [1, 4, 8, 12, 13]
        assert checkpoints.latest_step() == 13


def test_neither_the_newest_nor_the_best_is_ever_deleted(tmp_path):
    scores = {1: None, 10: 0.9, 20: 0.2, 30: 0.8, 40: None, 50: 0.5, 60: 0.7, 70: None}
    for step, wer in scores.items():  # reopened each time: what was evaluated is known from the disk
        with open_checkpoints(tmp_path) as checkpoints:
            save(checkpoints, step, wer=wer)
            seen = {s: scores[s] for s in scores if s <= step and scores[s] is not None}
            best = min(seen, key=seen.get) if seen else None
            checkpoints.wait()
            assert checkpoints.latest_step() == step
            assert checkpoints.best_step() == best
            assert set(checkpoints.all_steps()) == {step} | ({best} if best else set())
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [20, 70]
        assert checkpoints.metrics(20) == {"wer_macro": 0.2} and checkpoints.metrics(70) is None
        assert int(checkpoints.restore("best", abstract(make_state(0)))[0]["step"]) == 20
        assert int(checkpoints.restore("last", abstract(make_state(0)))[0]["step"]) == 70


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step, wer in ((1, 0.5), (2, float("nan")), (3, 0.6)):
            save(checkpoints, step, wer=wer, best={})
        assert checkpoints.all_steps() == [1, 3]
        assert checkpoints.resolve("best") == 1


def test_of_equal_scores_the_newer_is_the_best(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step, wer=0.5 if step < 3 else 0.6)
        assert checkpoints.resolve("best") == 2


def test_some_leaves_are_restored_without_the_others(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 5)
        part = checkpoints.restore_part("last", {"trainable": abstract(make_state(0)["trainable"])})
        assert_same_bits(part, {"trainable": make_state(5)["trainable"]})
        with pytest.raises(UserError, match="trainable/nope is absent there"):
            checkpoints.restore_part("last", {"trainable": {"nope": jnp.zeros(2)}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: make_state(1, tasks=3), ["trainable/tasks/head", "bfloat16[2, 3] there", "bfloat16[3, 3] here"]),
        (lambda s: s | {"extra": jnp.zeros(2)}, ["extra", "absent there", "float32[2] here"]),
        (lambda s: {k: v for k, v in s.items() if k != "step"}, ["step", "int32[] there", "absent here"]),
        (lambda s: s | {"step": jnp.float32(0)}, ["step", "int32[] there", "float32[] here"]),
        (lambda s: s | {"optimizer": optax.sgd(0.1).init({})}, ["optimizer/0/count", "int32[] there", "absent here"]),
    ],
    ids=["tasks", "more", "fewer", "dtype", "optimizer"],
)
def test_a_state_of_another_run_is_an_error_that_names_the_first_leaf_and_both_shapes(tmp_path, change, words):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(UserError) as error:
            checkpoints.restore("last", abstract(change(make_state(1))))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_backbone_is_refused_before_anything_else(tmp_path):
    with open_checkpoints(tmp_path, fingerprint={"backbone": "abc", "tasks": ["a"]}) as checkpoints:
        save(checkpoints, 1)
        checkpoints.restore(1, abstract(make_state(1)))
        assert checkpoints.fingerprint("last") == {"backbone": "abc", "tasks": ["a"]}
    with (
        open_checkpoints(tmp_path, fingerprint={"backbone": "xyz", "tasks": ["a"]}) as checkpoints,
        pytest.raises(UserError, match='backbone is "abc" in checkpoint 1, but "xyz" in this run'),
    ):
        checkpoints.restore(1, abstract(make_state(1, tasks=3)))


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path):
    with open_checkpoints(tmp_path, keep_latest=2) as checkpoints:
        with pytest.raises(UserError, match="there is no checkpoint"):
            checkpoints.restore("last", abstract(make_state(1)))
        save(checkpoints, 1)
        save(checkpoints, 2)
        with pytest.raises(UserError, match="no checkpoint 5; allowed are last, best, 1, 2"):
            checkpoints.restore(5, abstract(make_state(1)))
        with pytest.raises(UserError, match="no checkpoint was evaluated"):
            checkpoints.restore("best", abstract(make_state(1)))


@pytest.mark.parametrize("name", ["keep_latest", "every_steps"])
def test_numbers_out_of_range_are_named(tmp_path, name):
    with pytest.raises(UserError, match=f"checkpoint.{name} = 0: allowed: an integer of at least 1"):
        open_checkpoints(tmp_path, **{name: 0})


def test_an_onlooker_lists_checkpoints_while_a_run_deletes_them(tmp_path, monkeypatch):
    with open_checkpoints(tmp_path, keep_latest=5) as writer:
        for step in (1, 2, 3, 4):
            save(writer, step)
        writer.wait()
    names = type(writer._manager._step_name_format)
    find_all, gone = names.find_all, iter(("1", "2"))

    def listed(*arguments):
        found = list(find_all(*arguments))
        for name in itertools.islice(gone, 1):
            shutil.rmtree(tmp_path / name)
        return iter(found)

    monkeypatch.setattr(names, "find_all", listed)
    with open_checkpoints(tmp_path, read_only=True) as reader:
        assert reader.all_steps() == [3, 4]


def test_an_onlooker_changes_nothing_and_sees_what_is_new(tmp_path):
    with open_checkpoints(tmp_path) as writer:
        save(writer, 1)
        writer.wait()
        half_written = tmp_path / "2.orbax-checkpoint-tmp"
        half_written.mkdir()
        with open_checkpoints(tmp_path, read_only=True) as reader:
            assert half_written.exists()
            assert reader.resolve("last") == 1
            half_written.rmdir()
            save(writer, 3)
            writer.wait()
            assert reader.resolve("last") == 3
    with pytest.raises(UserError, match="no such directory"):
        open_checkpoints(tmp_path / "nowhere", read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_an_unwritable_directory_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoints cannot be kept here: Not a directory$"):
        open_checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(UserError, match=r"checkpoints cannot be kept here, it is a file$"):
        open_checkpoints(tmp_path / "file")


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        (tmp_path / "1" / "position" / "metadata").unlink()
        with pytest.raises(UserError, match="checkpoint 1 cannot be read"):
            checkpoints.restore(1, abstract(make_state(1)))
        for path in (tmp_path / "1" / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        with pytest.raises(UserError, match="checkpoint 1 cannot be read") as error:
            checkpoints.restore(1, abstract(make_state(1)))
    assert "\n" not in str(error.value)


# The child says "saved N" when checkpoint N is complete, and then writes a large one without end.
KILLED = """
import sys, jax, jax.numpy as jnp
from hra_jax.training.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep_latest=1, keep_best=1, every_steps=1)
first = (checkpoints.latest_step() or 0) + 1
for step in range(first, first + 1000):
    big = jax.random.bits(jax.random.key(step), (1 if step == first else 24_000_000,), jnp.uint32)
    state = {"step": jnp.int32(step), "big": big}
    checkpoints.save(step, state, position={"consumed": step}, best={})
    checkpoints.wait()
    print("saved", step, flush=True)
"""


def leftovers(path):
    return [entry.name for entry in path.iterdir() if not entry.name.isdigit()]


def kill_while_writing(path, env):
    """Starts the child and kills it while a checkpoint is being written; returns the last step it called complete."""
    for _ in range(5):  # a busy machine may let the child finish its save before the signal goes out
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True, env=env)
        saved = [child.stdout.readline()]
        while child.poll() is None and not leftovers(path):
            time.sleep(0.001)
        child.kill()
        saved += child.communicate()[0].splitlines()
        assert child.returncode == -signal.SIGKILL
        if leftovers(path):
            return int(saved[-1].split()[1])
    raise AssertionError("five times the child was not killed in the middle of a save")


def test_a_process_killed_while_writing_leaves_the_last_complete_checkpoint(tmp_path, command_env):
    for _ in range(2):  # the second child has the leftovers of the first in its way
        saved = kill_while_writing(tmp_path, command_env)
        with open_checkpoints(tmp_path, read_only=True) as checkpoints:
            # The kill may come between the commit and the report of it.
            assert checkpoints.latest_step() in (saved, saved + 1)
    with open_checkpoints(tmp_path) as checkpoints:
        last = checkpoints.resolve("last")
        assert int(checkpoints.restore_part(last, {"step": jnp.int32(0)})["step"]) == last
        # The very step whose leftovers lie there.
        interrupted = last + 1
        assert save(checkpoints, interrupted)
        checkpoints.wait()
        assert_same_bits(checkpoints.restore("last", abstract(make_state(0)))[0], make_state(interrupted))
    assert leftovers(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    (tmp_path / "7.orbax-checkpoint-tmp" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == []
        save(checkpoints, 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


# RLIMIT_FSIZE makes writes fail like a full disk does, in the middle of a file.
FULL = """
import json, resource, sys, jax, jax.numpy as jnp
from hra_jax.errors import UserError
from hra_jax.training.checkpoints import Checkpoints
state = {"step": jnp.int32(1), "big": jax.random.bits(jax.random.key(0), (300, 300), jnp.uint32)}
checkpoints = Checkpoints(sys.argv[1], keep_latest=1, keep_best=0, every_steps=1)
checkpoints.save(1, state, position={"consumed": 1}, best={})
checkpoints.wait()
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
errors = []
for step in (2, 3):
    try:
        checkpoints.save(step, state, position={"consumed": step}, best={})
        checkpoints.wait()
    except UserError as error:
        errors.append(str(error))
after = checkpoints.all_steps()
restored, position, _ = checkpoints.restore("last", state)
same = bool((restored["big"] == state["big"]).all()) and position == {"consumed": 1}
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
checkpoints.save(4, state, position={"consumed": 4}, best={})
checkpoints.close()
print(json.dumps([errors, after, same, checkpoints.all_steps()]))
"""


def test_a_full_disk_is_one_clear_line_and_the_last_checkpoint_stays_valid(tmp_path, command_env):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=command_env, check=True)
    errors, after, same, later = json.loads(done.stdout)
    assert [error.partition(": ")[2] for error in errors] == [
        f"checkpoint {step} could not be written (File too large); the last complete one is 1" for step in (2, 3)
    ]
    assert (after, same) == ([1], True)
    assert later == [4]
    assert "Save Finalize" not in done.stderr and "Failed to run" not in done.stderr  # what Orbax logs about it
