"""How long TensorStore asks a bucket that does not answer."""

import time

import pytest
import tensorstore
from orbax.checkpoint._src.serialization import tensorstore_utils

from hra_jax.storage import remote
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
