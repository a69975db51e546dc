"""How the processes of a run end together, by a store of words that the test holds."""

import threading
import types

import jax
import pytest

from hra_jax.run import processes


class Left(Exception):
    """In place of the end of this process."""


@pytest.fixture
def store(monkeypatch):
    """The words that processes store for each other; this process is number 0 of two, and number 1 hears at once."""
    words = {f"{processes._LEFT}1": ""}

    def get(key: str) -> str:
        if key not in words:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
        return words[key]

    def end(status, *told):
        raise Left(status, *told[:1])

    client = types.SimpleNamespace(
        key_value_try_get=get,
        key_value_set=words.__setitem__,
        key_value_dir_get=lambda start: [key for key in words if key.startswith(start)],
    )
    monkeypatch.setattr(processes, "_client", lambda: client)
    monkeypatch.setattr(processes, "_leaving", threading.Event())
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.signals, "end", end)
    monkeypatch.setattr(processes, "leave", end)
    return words


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_collective_that_another_process_has_left_ends_this_one_with_its_status_and_no_traceback(store, kind):
    shown = []
    hook = processes._then_leave(lambda *error: shown.append(error))
    error = kind("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
    with pytest.raises(Left) as left:
        hook(type(error), error, None)
    assert left.value.args == (1,) and len(shown) == 1  # nobody has said why: it is shown
    store[processes._ENDED] = "1 75"
    with pytest.raises(Left) as left:
        hook(type(error), error, None)
    assert left.value.args == (75, "process 1 ended with status 75, and so does this one") and len(shown) == 1
    with pytest.raises(Left) as left:
        hook(ValueError, ValueError("of its own"), None)
    assert left.value.args == (1,) and len(shown) == 2
