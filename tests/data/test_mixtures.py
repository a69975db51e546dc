"""The reference stream: complete epochs, the rates asked for, exact restarts, nothing TensorFlow cannot checkpoint."""

import collections
import itertools
import subprocess
import sys

import pytest

from hra_jax.data import mixtures
from hra_jax.data.mixtures import ReferenceStream, SourceSpec
from hra_jax.errors import UserError

MIXED = [SourceSpec("small", 7, 3), SourceSpec("large", 150, 6), SourceSpec("single", 1, 1.0)]


def _take(stream, count):
    return list(itertools.islice(stream, count))


def test_every_epoch_of_every_source_covers_each_row_once_in_another_order():
    references = _take(ReferenceStream(MIXED, seed=5), 2000)
    orders = collections.defaultdict(list)
    for source, row, epoch in references:
        orders[source, epoch].append(row)
    for index, source in enumerate(MIXED):
        epochs = [epoch for s, epoch in orders if s == index]
        assert epochs == list(range(len(epochs)))
        for epoch in epochs[:-1]:
            assert sorted(orders[index, epoch]) == list(range(source.rows))
    assert orders[1, 0] != orders[1, 1]
    assert orders[1, 0] != list(range(150))


def test_the_references_are_those_that_earlier_versions_gave():
    assert [(source, row) for source, row, _ in _take(ReferenceStream(MIXED, seed=5), 10)] == [
        *[(0, 0), (2, 0), (1, 53), (0, 3), (0, 6)],
        *[(1, 47), (1, 115), (1, 100), (2, 0), (1, 79)],
    ]
    late = _take(ReferenceStream(MIXED, seed=5, start=70_000), 4)
    assert late == [(1, 1, 279), (0, 2, 3018), (1, 111, 279), (1, 54, 279)]
    alone = _take(ReferenceStream([SourceSpec("a", 5)], seed=0), 10)
    assert [row for _, row, _ in alone] == [0, 4, 3, 1, 2, 2, 0, 3, 4, 1]


def test_a_stream_counts_what_it_drew_of_each_source_and_goes_on_from_the_counts():
    stream = ReferenceStream(MIXED, seed=3)
    drawn = collections.Counter(reference.source for reference in _take(stream, 700))
    assert stream.drawn == [drawn[0], drawn[1], drawn[2]]
    assert mixtures.draws_before(MIXED, 700, seed=3) == stream.drawn
    again = ReferenceStream(MIXED, seed=3, start=700, drawn=stream.drawn)
    assert _take(again, 50) == _take(stream, 50) and again.drawn == stream.drawn


def test_sources_come_at_their_rates():
    drawn = collections.Counter(r.source for r in _take(ReferenceStream(MIXED, seed=0), 20_000))
    assert [drawn[i] / 20_000 for i in range(3)] == pytest.approx([0.3, 0.6, 0.1], abs=0.015)


def test_proportional_means_the_number_of_rows():
    sources = [SourceSpec("a", 100), SourceSpec("b", 300), SourceSpec("c", 5, 100)]
    drawn = collections.Counter(r.source for r in _take(ReferenceStream(sources, seed=0), 20_000))
    assert [drawn[i] / 20_000 for i in range(3)] == pytest.approx([0.2, 0.6, 0.2], abs=0.015)


def test_the_stream_depends_on_the_seed_and_on_nothing_else():
    assert _take(ReferenceStream(MIXED, seed=1), 300) == _take(ReferenceStream(MIXED, seed=1), 300)
    assert _take(ReferenceStream(MIXED, seed=1), 300) != _take(ReferenceStream(MIXED, seed=2), 300)


@pytest.mark.parametrize("sources", [MIXED, MIXED[1:2]], ids=["mixture", "lone source"])
def test_a_restart_goes_on_where_the_stream_stood(sources):
    stream = ReferenceStream(sources, seed=3)
    before = _take(stream, 1500)
    assert stream.consumed == 1500
    after = _take(stream, 200)
    assert _take(ReferenceStream(sources, seed=3, start=stream.consumed - 200), 200) == after
    assert _take(ReferenceStream(sources, seed=3, start=1), 99) == before[1:100]


def test_a_million_references_can_be_skipped_into_the_middle_of_the_same_stream():
    late = ReferenceStream(MIXED, seed=3, start=999_900)
    expected = _take(late, 200)[100:]
    restarted = ReferenceStream(MIXED, seed=3, start=1_000_000)
    assert _take(restarted, 100) == expected
    assert (late.consumed, restarted.consumed) == (1_000_100, 1_000_100)
    # 60% of a million draws of 150 rows are about 4,000 epochs.
    assert max(r.epoch for r in expected if r.source == 1) == pytest.approx(4000, rel=0.02)


def test_a_skip_across_a_block_of_draws_is_exact(monkeypatch):
    monkeypatch.setattr(mixtures, "_BLOCK", 64)
    references = _take(ReferenceStream(MIXED, seed=3), 300)
    for start in (63, 64, 65, 200):
        assert _take(ReferenceStream(MIXED, seed=3, start=start), 60) == references[start : start + 60]


def test_tensorflow_can_checkpoint_the_pipeline_and_no_python_function_is_in_it(tmp_path):
    settings = {"seed": 3, "drawn": [0, 0, 0], "start": 0}
    dataset = mixtures.reference_dataset(MIXED, **settings)
    import tensorflow as tf

    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    assert [node.op for node in nodes if "PyFunc" in node.op] == []

    iterator = iter(dataset)
    for _ in range(50):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    following = [int(next(iterator)["place"]) for _ in range(20)]
    other = iter(mixtures.reference_dataset(MIXED, **settings))
    tf.train.Checkpoint(iterator=other).read(saved)
    assert [int(next(other)["place"]) for _ in range(20)] == following
    assert tf.config.get_visible_devices("GPU") == []


@pytest.mark.parametrize(
    "sources, message",
    [
        ([], "no data source"),
        ([SourceSpec("a", 3), SourceSpec("empty", 0)], "'empty' has no usable utterance"),
        ([SourceSpec("a", 3), SourceSpec("a", 4)], "'a' is given twice"),
        ([SourceSpec("a", 3, 0)], "rate 0 of source 'a'"),
        ([SourceSpec("a", 3, float("nan"))], "rate nan of source 'a'"),
        ([SourceSpec("a", 3, "often")], "'often' of source 'a' must be a positive number or 'proportional'"),
    ],
)
def test_sources_that_cannot_be_mixed_are_one_clear_line(sources, message):
    with pytest.raises(UserError, match=message):
        ReferenceStream(sources, seed=0)


def test_importing_the_data_modules_imports_no_tensorflow(command_env):
    code = "import sys, hra_jax.data.loader; sys.exit('tensorflow' in sys.modules or 'seqio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=command_env, check=False).returncode == 0
