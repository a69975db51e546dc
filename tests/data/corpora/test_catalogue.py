import importlib

import pytest

from hra_jax.data.corpora import catalogue
from hra_jax.errors import UserError
from hra_jax.text.normalization import normalize_text


def test_every_configuration_that_is_prepared_is_one_of_tensorflow_datasets():
    import tensorflow_datasets as tfds

    for name, corpus in catalogue.CORPORA.items():
        if not corpus.imported:
            known = {config.name for config in tfds.builder_cls(name).BUILDER_CONFIGS} or {""}
            assert {config.removeprefix("/") for config in corpus.configs} <= known


def test_all_languages_of_fleurs_and_of_common_voice_have_a_name():
    fleurs = importlib.import_module("tensorflow_datasets.audio.xtreme_s.xtreme_s")
    common_voice = importlib.import_module("tensorflow_datasets.audio.commonvoice")
    assert {f"/fleurs.{code}" for code in [*fleurs._FLEURS_LANG, "all"]} == set(catalogue.CORPORA["xtreme_s"].configs)
    assert {f"/{code}" for code in common_voice._LANGUAGES} <= set(catalogue.CORPORA["common_voice"].configs)


def test_no_split_holds_the_validated_sentences_of_common_voice_but_the_one_that_says_so():
    splits = catalogue.CORPORA["common_voice"].splits
    assert [split for split, parts in splits.items() if "validated" in parts] == ["validated"]
    assert catalogue.sources_of("hra/common_voice/cs", "validation") == ("validation",)


def test_sets_of_librispeech_are_each_in_one_of_train_validation_and_test():
    parts = [
        part for split in ("train", "validation", "test") for part in catalogue.CORPORA["librispeech"].splits[split]
    ]
    assert sorted(parts) == sorted(set(parts)) and len(parts) == 7


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("hra/librispech/lazy_decode", "unknown corpus 'hra/librispech/lazy_decode'; did you mean 'hra/librispeech/"),
        ("vctk/mic3", "unknown corpus 'vctk/mic3'; did you mean 'hra/vctk/mic"),
        ("hra/ljspeech/mic1", "unknown corpus 'hra/ljspeech/mic1'; did you mean 'hra/ljspeech'?"),
        ("hra/xtreme_s/fleurs.cz_cs", "did you mean 'hra/xtreme_s/fleurs.cs_cz'"),
        ("hra/common_voice/../x", "unknown corpus"),
        ("hra/", "unknown corpus 'hra/'; allowed: "),
    ],
)
def test_a_wrong_name_is_told_with_those_that_are_near(name, named):
    with pytest.raises(UserError) as raised:
        catalogue.split_name(name)
    assert named in str(raised.value)


def test_a_language_that_common_voice_gets_later_can_be_named():
    assert catalogue.split_name("hra/common_voice/xyz-Latn")[:2] == ("common_voice", "xyz-Latn")


@pytest.mark.parametrize(
    ("name", "split", "named"),
    [
        ("hra/common_voice/cs", "dev", "no split 'dev'; allowed: train, validation, test, validated"),
        ("hra/librispeech/lazy_decode", "train_clean_100", "did you mean 'train_clean100'"),
        ("hra/ljspeech", "vaildation", "did you mean 'validation'?"),
    ],
)
def test_a_split_that_does_not_exist_is_told_with_those_that_do(name, split, named):
    with pytest.raises(UserError) as raised:
        catalogue.sources_of(name, split)
    assert named in str(raised.value)


def test_texts_that_are_equal_once_normalised_are_in_one_part():
    rows = [catalogue.Row("", f"Sentence number {number}.", {}) for number in range(2000)]
    parts = {}
    for row in rows:
        for text in (row.text, row.text.upper(), row.text.rstrip(".")):
            part = catalogue.part_of_text(catalogue.Row("", text, {}))
            assert parts.setdefault(normalize_text(text, "basic@2"), part) == part
    counts = [list(parts.values()).count(part) for part in ("train", "validation", "test")]
    # Binomial with 2,000 draws of 1/20: 100 with a standard deviation of 9.7.
    assert sum(counts) == 2000 and all(abs(count - 100) < 40 for count in counts[1:])
