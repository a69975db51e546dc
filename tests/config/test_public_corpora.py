"""The configurations of public corpora: what they name exists, training and test data are apart, batches fit pods."""

import pytest

from hra_jax.config.files import load_config
from hra_jax.data.corpora import catalogue, registry
from hra_jax.tpu.plan import make_plan

TOPOLOGIES = {
    "librispeech_hra": ("v5e:2x4", "v5e:4x4"),
    "common_voice_hra": ("v5e:2x4", "v5e:4x4", "v5e:4x8"),
    "user_libri_hra": ("v5e:1x1", "v5e:2x2", "v5e:2x4"),
}


def splits_of(sources):
    """{(corpus, split of its source)} of sources."""
    named = [registry.name_and_split(source) for source in sources]
    return {(name, part) for name, split in named for part in catalogue.sources_of(name, split)}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_what_is_trained_on_is_known_and_in_no_suite(name):
    config = load_config(name)
    trained = splits_of(source for _, source, _ in config.data.sources)
    scored = [
        splits_of(row[1] for row in load_config(suite, kind="suites").tasks)
        for suite in (config.eval.suite, config.eval.select_suite)
    ]
    assert trained and all(scored)
    assert not trained & scored[0] and not trained & scored[1] and not scored[0] & scored[1]
    assert {corpus for corpus, _ in trained} == {corpus for found in scored for corpus, _ in found}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_batches_divide_among_the_chips_that_are_named_and_no_bucket_wastes_a_fifth_of_one(name):
    config = load_config(name)
    for topology in TOPOLOGIES[name]:
        planned = make_plan(config, topology)
        for seconds, rows in zip(config.batch.buckets, planned.train_rows, strict=True):
            assert rows % planned.devices == 0
            assert 0.8 * config.batch.seconds < rows * seconds <= config.batch.seconds
