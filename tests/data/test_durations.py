"""Length buckets found in the data: none pad less, all utterances fit, and a file of lengths stands for the data."""

import itertools
import json

import numpy as np
import pytest

from hra_jax.config.files import load_config
from hra_jax.config.keys import group
from hra_jax.data import durations
from hra_jax.data.batching import Batcher, bucket_rows
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError


def _padded(lengths, edges):
    """Seconds that utterances take in their buckets, one after the other."""
    return sum(min(edge for edge in edges if edge >= length) for length in lengths)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("buckets", [1, 2, 3, 4])
def test_no_other_edges_pad_less(seed, buckets):
    random = np.random.default_rng(seed)
    lengths = np.round(random.gamma(2.0, 0.4, 25) + 0.05, 3)
    found = durations.best_edges(durations.count_durations(lengths), buckets, frame=0.08, limit=60.0)
    ends = sorted({round(int(np.ceil(length / 0.08)) * 0.08, 6) for length in lengths})
    least = min(_padded(lengths, (*some, ends[-1])) for some in itertools.combinations(ends[:-1], buckets - 1))
    assert len(found) == buckets and set(found) <= set(ends)
    assert _padded(lengths, found) == pytest.approx(least)
    assert durations.padding_share(lengths, found) == pytest.approx(1 - lengths.sum() / least)


@pytest.mark.parametrize("frame", [0.01, 0.02, 0.0125, 0.08])
def test_every_utterance_up_to_the_limit_has_a_bucket_and_none_is_above_it(frame):
    lengths = np.random.default_rng(1).uniform(0.1, 20.0, 3000)
    # Lengths that are whole frames, or a rounding error away from them.
    lengths = np.concatenate([lengths, np.arange(1, 200) * frame, np.arange(1, 200) * frame + 1e-12, [15.997]])
    for limit in (9.99, 15.998, 16.0, 40.0):
        edges = durations.best_edges(durations.count_durations(lengths), 5, frame=frame, limit=limit)
        assert max(lengths[lengths <= limit]) <= edges[-1] <= limit
        assert all(abs(edge / frame - round(edge / frame)) < 1e-4 for edge in edges[:-1])


def test_there_are_no_more_buckets_than_lengths_and_one_where_there_is_no_utterance():
    few = durations.count_durations([0.5, 0.5, 1.0])
    assert durations.best_edges(few, 8, frame=0.02, limit=9.0) == (0.5, 1.0)
    assert durations.best_edges(few, 8, frame=0.02, limit=0.3) == (0.3,)


def test_lengths_of_hours_in_short_frames_are_taken_together():
    lengths = np.random.default_rng(2).uniform(0.1, 3000.0, 20_000)
    edges = durations.best_edges(durations.count_durations(lengths), 8, frame=0.01, limit=1e5)
    assert len(edges) == 8 and edges[-1] >= lengths.max()
    assert durations.padding_share(lengths, edges) < 1.02 * durations.padding_share(lengths, np.arange(1, 9) * 375.0)


def _source(name, rows):
    return TableSource(name, [Utterance(f"/{n}.wav", s, "a", tags={"speaker": who}) for n, (s, who) in enumerate(rows)])


def test_utterances_of_other_tasks_do_not_count():
    sources = [_source("a", [(0.5, "ann"), (1.0, "bob")]), _source("b", [(2.0, "cy"), (0.5, "ann"), (3.0, None)])]
    assert durations.durations_of(sources).utterances == 5
    found = durations.durations_of(sources, task_tag="speaker", tasks=("ann", "cy"))
    assert (found.seconds.tolist(), found.counts.tolist()) == ([0.5, 2.0], [2, 1])


def _data(**changes):
    config = load_config("own")
    config.data.update(changes)
    return group(config, "data")


@pytest.fixture
def written(tmp_path):
    found = durations.count_durations(np.random.default_rng(3).gamma(3.0, 1.0, 500))
    durations.write_durations(tmp_path / "d.json", found, _data())
    return tmp_path / "d.json", found


def test_a_file_of_lengths_gives_the_edges_of_the_data(written):
    path, found = written
    read = durations.read_durations(path, _data(dir="elsewhere"))
    assert read.digest == found.digest
    assert durations.best_edges(read, 8, frame=0.02, limit=30.0) == durations.best_edges(
        found, 8, frame=0.02, limit=30.0
    )


@pytest.mark.parametrize(
    "changes",
    [{"sources": (("libri", "{dir}/train.jsonl", 1.0),)}, {"sources": (("own", "b.jsonl", 1.0),)}, {"tasks": ("ann",)}],
)
def test_a_file_of_another_corpus_is_one_line_with_both_and_its_size_and_digest(written, changes):
    path, found = written
    with pytest.raises(UserError, match=f"of another corpus.*500 utterances, digest {found.digest}") as caught:
        durations.read_durations(path, _data(**changes))
    assert "own: {dir}/train.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_lengths_that_are_not_those_of_the_data_are_one_line_with_both_digests(written):
    path, found = written
    other = durations.count_durations([1.0])
    with pytest.raises(UserError, match=f"{found.digest}, the training data 1 utterances, digest {other.digest}"):
        durations.check_same(path, found, other)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("lengths", [[3, 1], [2, 1]], "lengths ascending"),
        ("lengths", [[3, 0]], "damaged"),
        ("lengths", [], "damaged"),
        ("lengths", [[1, 2]], "do not have its digest"),
        ("format", 9, "format 9; allowed: 1"),
        ("sources", "x", "sources"),
    ],
)
def test_a_damaged_file_of_lengths_is_one_line(written, key, value, told):
    path, _ = written
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}), encoding="utf-8")
    with pytest.raises(UserError, match=told):
        durations.read_durations(path, _data())


def test_padding_is_what_the_batches_of_a_run_hold():
    lengths = np.random.default_rng(4).gamma(4.0, 0.5, 4000)
    edges = durations.best_edges(durations.count_durations(lengths), 4, frame=0.02, limit=60.0)
    rows = bucket_rows(edges, batch_seconds=40.0, multiple=2)
    batcher = Batcher(edges, rows=rows, max_tasks=9, lookup=lambda source, row: (lengths[row], row % 9))
    spoken = held = 0.0
    for epoch in range(3):
        for row in np.random.default_rng(epoch).permutation(len(lengths)):
            batcher.add(0, int(row))
            while (plan := batcher.pop()) is not None:
                assert len(plan.rows) == rows[plan.bucket]
                held += len(plan.rows) * edges[plan.bucket]
                spoken += sum(lengths[row] for _, row in plan.rows)
    assert durations.padding_share(lengths, edges) == pytest.approx(1 - spoken / held, abs=0.003)
