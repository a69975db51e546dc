"""What is heard of Orbax's threads, and how long TensorStore asks a bucket that does not answer."""

import asyncio
import gc
import time
import types

import pytest
import tensorstore
from orbax.checkpoint._src.path import async_path
from orbax.checkpoint._src.serialization import tensorstore_utils

from hra_jax.storage import remote
from hra_jax.training import orbax_errors
from hra_jax.training.orbax_errors import bound_retries


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("seconds, tries, least", [("0", 2, 0.0), ("0.6", 2, 0.5)])
def test_a_bucket_is_asked_again_for_as_long_as_by_all_other_clients(
    gcs_storage, monkeypatch, ocdbt, seconds, tries, least
):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, seconds)
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        monkeypatch.setattr(tensorstore_utils, name, dict(getattr(tensorstore_utils, name)))
    bound_retries()
    context = tensorstore_utils.get_ts_context(use_ocdbt=ocdbt)
    store = tensorstore.KvStore.open("gs://bucket/", context=context).result()
    gcs_storage.fail("object")
    start = time.monotonic()
    with pytest.raises(ValueError, match="retry attempts failed") as caught:
        store.read("object").result()
    assert least <= time.monotonic() - start < 20
    assert len([asked for asked in gcs_storage.requests if asked.endswith("object")]) == tries
    assert remote.unavailable(caught.value)


def test_the_pauses_of_other_clients_are_those_of_this_one(monkeypatch):
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "60")
    assert remote.pauses() == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0]
    monkeypatch.setenv(remote.SECONDS_VARIABLE, "0")
    assert remote.pauses() == []


def leave(work) -> None:
    """Runs a coroutine that fails, and asks nobody how it went."""

    async def begin() -> None:
        asyncio.ensure_future(work).add_done_callback(lambda _: done.set())
        await done.wait()

    done = asyncio.Event()
    asyncio.run(begin())
    gc.collect()


def test_of_files_that_orbax_could_not_write_only_the_first_is_told_of(tmp_path, caplog):
    orbax_errors.log_less()
    leave(async_path.write_text(tmp_path / "absent" / "file", "text"))
    assert not caplog.records

    async def ours() -> None:
        raise OSError("of something else")

    leave(ours())
    assert "never retrieved" in caplog.text and "of something else" in caplog.text


@pytest.mark.parametrize("calls, heard", [(1, True), (2, False)])
def test_arrays_that_find_the_save_over_say_nothing(calls, heard):
    loop, told = asyncio.new_event_loop(), []
    loop.close()
    try:
        loop.call_soon_threadsafe(print)
    except RuntimeError as error:
        trace = error.__traceback__
        for _ in range(1, calls):  # TensorStore calls from C++: without the frame of this function
            trace = trace.tb_next
        what = types.SimpleNamespace(exc_value=error, exc_traceback=trace)
        orbax_errors._tell(told.append, what)
    assert bool(told) == heard
