"""What fails in one process fails in all of them, in the same way; each thread here stands for a process."""

import struct
import threading

import numpy as np
import pytest

from hra_jax.errors import FAILURES, DamagedError, UserError
from hra_jax.storage import remote
from hra_jax.training import agreement


def outcomes(monkeypatch, *raised, do=agreement.agreed):
    """What `agreed` raises in each of so many processes, or what it gives."""
    barrier, local = threading.Barrier(len(raised), timeout=20), threading.local()
    said, found = [None] * len(raised), [None] * len(raised)

    def gathered(value):
        said[local.number] = value
        barrier.wait()
        heard = np.stack(said)
        barrier.wait()
        return heard

    monkeypatch.setattr(agreement.multihost_utils, "process_allgather", gathered)
    monkeypatch.setattr(agreement.jax, "process_count", lambda: len(raised))
    monkeypatch.setattr(agreement.jax, "process_index", lambda: local.number)

    def act(number):
        if raised[number] is not None:
            raise raised[number]
        return number

    def process(number):
        local.number = number
        try:
            found[number] = do(lambda: act(number))
        except FAILURES as error:
            found[number] = error

    threads = [threading.Thread(target=process, args=(number,)) for number in range(len(raised))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_where_none_fails_each_has_what_it_did(monkeypatch):
    assert outcomes(monkeypatch, None, None) == [0, 1]


@pytest.mark.parametrize(
    ("raised", "kind", "text"),
    [
        ((None, DamagedError("checkpoint 4 is cut"), None), DamagedError, "process 1: checkpoint 4 is cut"),
        ((DamagedError("cut"), None), DamagedError, "process 0: cut"),
        ((DamagedError("cut"), UserError("cannot be read"), None), UserError, "process 1: cannot be read"),
        ((None, OSError(5, "Input/output error")), UserError, "process 1: [Errno 5] Input/output error"),
        ((DamagedError("cut"), DamagedError("é" * 900)), DamagedError, "process 0: cut"),
        ((None, DamagedError("é" * 900)), DamagedError, "process 1: " + "é" * 900),
    ],
)
def test_what_is_worst_is_raised_in_all_and_names_its_process(monkeypatch, raised, kind, text):
    found = outcomes(monkeypatch, *raised)
    assert [(type(error), str(error)) for error in found] == [(kind, text)] * len(raised)
    assert all(agreement.is_agreed(error) for error in found)


def test_storage_that_is_away_for_one_is_away_for_all(monkeypatch):
    away = UserError("cannot be read")
    away.__cause__ = remote.StorageUnavailable(11, "the storage does not answer: 503")
    found = outcomes(monkeypatch, DamagedError("cut"), away)
    assert [str(error) for error in found] == ["process 1: cannot be read"] * 2
    assert all(remote.unavailable(error) is not None for error in found)
    assert not any(isinstance(error, DamagedError) for error in found)


def test_a_fault_of_one_process_keeps_its_kind_there_and_counts_for_more_than_what_a_user_can_mend(monkeypatch):
    fault = struct.error("odd")
    found = outcomes(monkeypatch, UserError("cannot be read"), fault, None)
    assert found[1] is fault and [type(error) for error in found] == [RuntimeError, struct.error, RuntimeError]
    assert [str(error) for error in found] == ["process 1: odd", "odd", "process 1: odd"]
    assert all(agreement.is_agreed(error) for error in found)
    away = remote.StorageUnavailable(11, "the storage does not answer: 503")
    assert all(remote.unavailable(error) is not None for error in outcomes(monkeypatch, struct.error("odd"), away))


def test_what_the_first_process_does_alone_fails_in_all(monkeypatch):
    refused = UserError("is in use"), AssertionError("nobody else does it")
    found = outcomes(monkeypatch, *refused, do=agreement.first_alone)
    assert [(type(error), str(error)) for error in found] == [(UserError, "process 0: is in use")] * 2
    assert outcomes(monkeypatch, None, refused[1], do=agreement.first_alone) == [None, None]


def test_one_process_alone_raises_what_was_raised():
    with pytest.raises(DamagedError, match="^cut$"):
        agreement.agreed(lambda: (_ for _ in ()).throw(DamagedError("cut")))
    assert agreement.agreed(lambda: 3) == 3
