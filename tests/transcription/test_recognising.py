"""Results in the order of requests, whatever the batches are."""

import numpy as np
import pytest

from hra_jax.data.utterance import Recording
from hra_jax.errors import UserError
from hra_jax.transcription.batches import Kind
from hra_jax.transcription.outputs import Result
from hra_jax.transcription.recognising import results
from hra_jax.transcription.requests import Request

RATE = 1000


class Reader:
    """Recognises its number in a recording, and refuses batches that hold one of some numbers."""

    sample_rate = RATE

    def __init__(self, *refused: int):
        self.refused, self.batches = set(refused), []

    def kind(self, request):
        return Kind(request.session)

    def results(self, decoded):
        numbers = [int(one.samples[0]) for one in decoded]
        self.batches.append(numbers)
        if self.refused.intersection(numbers):
            raise UserError(f"{numbers} overflow")
        rows = zip(decoded, numbers, strict=True)
        return [Result(one.request, one.samples.size / RATE, str(number), "ann") for one, number in rows]


def requests(count: int, **more) -> list[Request]:
    lengths = np.random.default_rng(0).integers(100, 5000, count)
    made = []
    for number, size in enumerate(lengths):
        samples = np.full(size, number, np.float32)
        recording = Recording(str(number), size / RATE, "", key=str(number), samples=samples, sample_rate=RATE)
        made.append(Request(str(number), str(number), "ann", str(number), recording, **more))
    return made


def test_results_come_in_the_order_of_requests_and_begin_before_the_last_is_decoded():
    asked, taken = requests(500), []

    def counted():
        for request in asked:
            taken.append(request)
            yield request

    found = results(counted(), Reader())
    first = next(found)
    assert len(taken) < 500
    rest = [first, *found]
    assert [result.request.key for result in rest] == [request.key for request in asked]
    assert [result.text for result in rest] == [request.key for request in asked]


def test_errors_stand_at_their_place_and_cost_no_other_its_text():
    asked = requests(60)
    asked[7] = asked[7]._replace(error="unknown_task: bop")
    reader = Reader(20, 41)
    found = list(results(iter(asked), reader))
    assert [result.request.key for result in found] == [str(number) for number in range(60)]
    assert {number for number, result in enumerate(found) if result.text is None} == {7, 20, 41}
    assert found[7].error == "unknown_task: bop" and found[20].error == "[20] overflow"
    assert [20] in reader.batches and [41] in reader.batches


def test_a_model_that_gives_no_numbers_at_all_is_an_error_and_not_a_result_for_each():
    with pytest.raises(UserError, match="overflow"):
        list(results(iter(requests(40)), Reader(*range(40))))


def test_kinds_are_recognised_apart():
    asked = [request._replace(session=str(number % 3)) for number, request in enumerate(requests(40))]
    reader = Reader()
    assert [result.text for result in results(iter(asked), reader)] == [str(number) for number in range(40)]
    assert all(len({number % 3 for number in batch}) == 1 for batch in reader.batches)
