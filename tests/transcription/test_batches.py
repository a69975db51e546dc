"""Recordings decoded ahead, in batches of like length."""

import collections
import threading

import numpy as np
import pytest

from hra_jax.data.audio import AudioError
from hra_jax.data.utterance import Recording
from hra_jax.transcription.batches import Decoding, Kind
from hra_jax.transcription.requests import Request

RATE = 1000


def request(number: int, seconds: float, *, task: str = "ann", error: str = "") -> Request:
    samples = np.full(round(seconds * RATE), number, np.float32)
    recording = Recording(str(number), seconds, "", key=str(number), samples=samples, sample_rate=RATE)
    return Request(str(number), str(number), task, str(number), recording, error=error)


def batches(requests, *, most=4, kind=lambda one: Kind(one.task), **more):
    with Decoding(iter(requests), sample_rate=RATE, threads=3, **more) as decoding:
        found = []
        while batch := decoding.take(most, kind=kind):
            found.append(batch)
        assert decoding.take(most) == []
    return found


def test_every_request_comes_once_with_its_own_samples():
    lengths = np.random.default_rng(0).uniform(0.1, 9.0, 300)
    found = [one for batch in batches([request(*pair) for pair in enumerate(lengths)]) for one in batch]
    assert sorted(one.number for one in found) == list(range(300))
    assert all(set(one.samples.tolist()) == {one.number} for one in found)


def test_a_batch_holds_what_has_waited_longest_and_little_padding():
    lengths = np.random.default_rng(1).uniform(0.5, 8.0, 400)
    found, left = batches([request(*pair) for pair in enumerate(lengths)], most=16), set(range(400))
    for batch in found:
        assert min(left) in {one.number for one in batch} or min(left) >= min(one.number for one in batch) - 3
        left -= {one.number for one in batch}
    sizes = [[one.samples.size for one in batch] for batch in found if len(batch) == 16]
    padded = sum(max(batch) * len(batch) for batch in sizes) / sum(map(sum, sizes))
    plain = [lengths[start : start + 16] for start in range(0, 400, 16)]
    assert padded < 1.25 < sum(max(part) * len(part) for part in plain) / lengths.sum()


def test_requests_of_two_kinds_share_no_batch():
    found = batches([request(number, 1.0, task="ab"[number % 2]) for number in range(20)])
    assert all(len({one.request.task for one in batch}) == 1 for batch in found) and len(found) < 20


def test_groups_stay_whole_and_share_batches_where_they_fit():
    sizes = (3, 1, 2, 5, 9, 1, 1, 1, 30, 2)
    groups = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    asked = [request(number, 1.0, task=group) for number, group in enumerate(groups)]
    found = batches(asked, most=6, kind=lambda one: Kind("all", one.task))
    assert sorted(one.number for batch in found for one in batch) == list(range(len(asked)))
    counts = [collections.Counter(one.request.task for one in batch) for batch in found]
    for number, size in enumerate(sizes):
        shares = [count[str(number)] for count in counts if count[str(number)]]
        assert shares[0] == min(size, 6) and len(shares) == -(-size // 6)
    assert max(map(len, found)) <= 6 and len(found) < len(sizes) + 6


def test_what_cannot_be_decoded_comes_with_its_reason_and_costs_nothing_else():
    class Broken(Request):
        def samples(self, sample_rate):
            raise AudioError("missing_file", "no file")

    asked = [request(0, 1.0), Broken(*request(1, 1.0)), request(2, 1.0, error="unknown_task: bop"), request(3, 1.0)]
    errors = {one.number: one.error for batch in batches(asked) for one in batch}
    assert errors == {0: "", 1: "missing_file: no file", 2: "unknown_task: bop", 3: ""}


def test_no_more_is_decoded_ahead_than_allowed_and_nothing_after_the_block():
    decoded = set()
    enough = threading.Event()

    class Counted(Request):
        def samples(self, sample_rate):
            decoded.add(self.key)
            if len(decoded) == 8:
                enough.set()
            return super().samples(sample_rate)

    with Decoding((Counted(*request(n, 1.0)) for n in range(1000)), sample_rate=RATE, threads=3, ahead=8) as decoding:
        assert enough.wait(10) and len(decoding.take(4)) == 4
    assert 8 <= len(decoded) <= 12


def test_an_error_that_is_not_of_one_recording_is_raised():
    def failing():
        yield request(0, 1.0)
        raise OSError("the bucket is away")

    with pytest.raises(OSError, match="the bucket is away"):
        batches(failing())
