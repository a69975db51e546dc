"""A number of length buckets: found once, in the data or a file of its lengths, and the same run ever after."""

import types

import jax
import numpy as np
import pytest
from reference import micro as world

from hra_jax import aot
from hra_jax.config.files import config_from_json, config_to_json, load_config, validate_config
from hra_jax.config.keys import group
from hra_jax.data import durations
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run import buckets, foundation, read, workdirs
from hra_jax.tpu.plan import make_plan


@pytest.fixture
def config(micro):
    return micro.config(batch__buckets=3)


def _found(config):
    sources = read.training_sources(group(config, "data"), DataReport())
    assert buckets.find_buckets(config, sources, foundation.load(config.backbone))
    return sources


def test_edges_are_found_in_the_training_data_and_are_whole_frames_of_the_encoder(config):
    sources = _found(config)
    base = foundation.load(config.backbone)
    frame = base.features.stride * base.encoder.subsampling / base.features.sample_rate
    lengths = np.concatenate([np.asarray([row.duration for row in source.utterances]) for source in sources])
    edges = group(config, "batch").edges
    assert 1 < len(edges) <= 3 and edges[-1] - frame < lengths.max() <= edges[-1]
    assert all(abs(edge / frame - round(edge / frame)) < 1e-6 for edge in edges)
    validate_config(config)
    assert not buckets.find_buckets(config, sources, base)


@pytest.mark.parametrize("most", [0.5, 3.9])
def test_edges_end_at_the_longest_utterance_that_is_taken(config, most):
    with config.unlocked():
        config.data.max_seconds = most
    sources = _found(config)
    lengths = [row.duration for source in sources for row in source.utterances if row.duration <= most]
    edges = group(config, "batch").edges
    assert max(lengths) <= edges[-1] <= most
    validate_config(config)  # a limit above the last bucket would be refused beside it


def test_without_a_limit_no_utterance_is_longer_than_a_batch_holds(config):
    with config.unlocked():
        config.batch.seconds, config.batch.multiple = 4.0, 8
    lengths = [row.duration for source in _found(config) for row in source.utterances]
    assert max(length for length in lengths if length <= 0.5) <= group(config, "batch").edges[-1] <= 0.5 < max(lengths)


def test_batches_of_evaluations_that_do_not_hold_what_is_trained_on_are_one_line_and_leave_nothing_out(config):
    with config.unlocked():
        config.batch.multiple, config.eval.batch_seconds = 2, 1.0
    with pytest.raises(UserError) as caught:
        _found(config)
    assert str(caught.value) == (
        "config.eval.batch_seconds is 1: 1 s of audio per batch hold 1 rows of the 0.72 s bucket, fewer than the batch "
        "multiple 2: at least 1.44 s are needed"
    )
    assert config.batch.buckets == 3


def test_a_limit_that_no_batch_holds_is_one_line(config):
    with config.unlocked():
        config.data.max_seconds = 5.0
    with pytest.raises(UserError, match="data.max_seconds is 5.0; allowed: at most 4.0, batch.seconds"):
        validate_config(config)


def _begun(config, folder):
    """A work directory of a run that has found its buckets and has a checkpoint; its configuration."""
    begun = config.copy_and_resolve_references()
    _found(begun)
    (folder / "checkpoints" / "1").mkdir(parents=True)
    (folder / "config.json").write_text(config_to_json(begun), encoding="utf-8")
    return begun


@pytest.mark.parametrize("most", [0.0, 3.9])
def test_the_same_number_goes_on_with_the_stored_edges(config, tmp_path, most):
    with config.unlocked():
        config.data.max_seconds = most
    begun = _begun(config, tmp_path)
    with workdirs.claim(config, tmp_path) as claimed:
        assert claimed.resumed
    assert config.batch.buckets == begun.batch.buckets
    assert config_from_json((tmp_path / "config.json").read_text()).batch.buckets == begun.batch.buckets
    with workdirs.claim(begun, tmp_path) as claimed:
        assert claimed.resumed


def test_fewer_buckets_than_a_run_has_are_another_configuration(config, tmp_path):
    begun = _begun(config, tmp_path)
    with config.unlocked():
        config.batch.buckets = 1
    with pytest.raises(UserError) as caught, workdirs.claim(config, tmp_path):
        pass
    assert f"batch.buckets: {begun.batch.buckets!r} -> 1" in str(caught.value)


def test_a_file_of_lengths_gives_a_plan_what_the_data_gives_a_run(config, tmp_path):
    sources = _found(found := config.copy_and_resolve_references())
    lengths = buckets.lengths_of(config, sources)
    durations.write_durations(tmp_path / "d.json", lengths, group(config, "data"))
    buckets.take_buckets(config, tmp_path / "d.json")
    assert make_plan(config, "cpu-1").edges == found.batch.buckets
    with pytest.raises(UserError, match="--durations=.* needed: their number"):
        buckets.take_buckets(config, tmp_path / "d.json")


def test_a_file_of_lengths_of_other_recordings_under_the_same_names_is_one_line(config, tmp_path):
    other = durations.count_durations([1.0, 2.0])
    durations.write_durations(tmp_path / "d.json", other, group(config, "data"))
    with pytest.raises(UserError, match=f"of another corpus: it has 2 utterances, digest {other.digest}, the training"):
        buckets.take_buckets(config, tmp_path / "d.json")


def test_ahead_of_time_a_number_needs_a_file_of_lengths_and_a_plan_needs_none(config, monkeypatch, capsys):
    values = {"config": config, "json": None, "steps": ["train"], "topology": "cpu-1", "durations": None, "plan": False}
    monkeypatch.setattr(aot, "FLAGS", types.SimpleNamespace(**values))
    with pytest.raises(UserError, match=r"batch.buckets = 3: .* needed here: --durations FILE"):
        aot.main([])
    aot.FLAGS.plan = True
    assert aot.main([]) == 0
    assert "3 buckets, which a run finds in its training data" in capsys.readouterr().out


def test_the_stored_configuration_of_a_run_is_a_configuration(config, tmp_path):
    begun = _begun(config, tmp_path)
    assert config_to_json(load_config(str(tmp_path / "config.json"))) == config_to_json(begun)


@pytest.mark.slow(minutes=1)
def test_a_run_that_finds_its_buckets_is_the_run_that_is_given_them_and_resumes_with_them(micro, tmp_path):
    done = world.train(micro.config(batch__buckets=2, steps=2), tmp_path / "found")
    edges = config_from_json((tmp_path / "found" / "config.json").read_text()).batch.buckets
    assert len(edges) == 2
    assert "the train step was compiled for" in done.printed and "would be" in done.printed
    again = world.train(micro.config(batch__buckets=2, steps=4), tmp_path / "found")
    given = world.train(micro.config(batch__buckets=edges, steps=4), tmp_path / "given")
    for mine, others in zip(jax.tree.leaves(again.run.state), jax.tree.leaves(given.run.state), strict=True):
        np.testing.assert_array_equal(mine, others)
