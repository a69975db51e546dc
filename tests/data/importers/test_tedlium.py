"""TED-LIUM: speakers, marks that are no words, segments that are not to be scored, all releases."""

import pytest
from reference import corpus_trees

from hra_jax.data.importers import importing


def test_speakers_and_segments_that_are_not_to_be_scored(tmp_path):
    corpus_trees.tedlium(tmp_path / "corpus")
    found = {part.split.name: part for part in importing.import_corpus(tmp_path / "corpus", tmp_path / "out").values()}
    about = [(row["speaker"], row["talk"], row.get("gender")) for part in found.values() for row in part.rows]
    assert about == [
        ("911Mothers_2010W", "911Mothers_2010W", None),
        ("911Mothers_2010W", "911Mothers_2010W", "female"),
        ("AaronHuey_2010X", "AaronHuey_2010X", "male"),
        ("AlGore_2009", "AlGore_2009", "male"),
        ("AimeeMullins_2009P", "AimeeMullins_2009P", "female"),
    ]
    (row,) = found["validation"].report.to_json()["utterances"]["no_text"]
    assert row == {"name": "legacy/dev/AlGore_2009.stm:2", "detail": "the corpus says that it is not to be scored"}


def test_the_first_releases_have_train_dev_and_test_side_by_side(tmp_path):
    expected = corpus_trees.tedlium(tmp_path / "corpus")
    (tmp_path / "corpus" / "data").rename(tmp_path / "corpus" / "train")
    for name in ("dev", "test"):
        (tmp_path / "corpus" / "legacy" / name).rename(tmp_path / "corpus" / name)
    parts = importing.import_corpus(tmp_path / "corpus", tmp_path / "out").values()
    assert {part.split.name: [row["text"] for row in part.rows] for part in parts} == {
        split: list(own.values()) for split, own in expected.items()
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 1 <o,f0,male> don 't it 's we 'll they 're i 've", "don't it's we'll they're i've"),
        ("0 1 <o,f0,male> read(2) the(3) list", "read the list"),
        ("0 1 <F0_M> <s> hello </s> (AaronHuey_2010X-F0_M-S0)", "hello"),
        ("0 1 said the ' 90s", "said the ' 90s"),
        ("0 1 <o,f0,male> {NOISE} <unk> <sil>", None),
        ("0 1 <o,f0,male>", None),
        ("0 one <o,f0,male> hello", None),
        ("0 <o,f0,male> hello", None),
        ("2 1 <o,f0,male> hello", None),
        ("5.9 7 <o,f0,male> hello", None),
    ],
)
def test_a_transcript_is_the_words_that_were_said(tmp_path, line, expected):
    corpus_trees.tedlium(tmp_path / "corpus")
    stm = tmp_path / "corpus" / "data" / "stm" / "AaronHuey_2010X.stm"
    corpus_trees.write(stm, f"AaronHuey_2010X 1 AaronHuey_2010X {line}", end="\r\n")
    (part,) = importing.import_corpus(tmp_path / "corpus", tmp_path / "m.jsonl", splits=["train"]).values()
    own = [row["text"] for row in part.rows if "Aaron" in row["audio_filepath"]]
    assert own == ([] if expected is None else [expected])
    assert sum(part.report.counts().values()) == (expected is None)


def test_talks_that_were_converted_are_found(tmp_path):
    expected = corpus_trees.tedlium(tmp_path / "corpus")
    sph = tmp_path / "corpus" / "data" / "sph"
    for path in list(sph.iterdir()):
        path.unlink()
        corpus_trees.sound(path.with_suffix(".flac"), seconds=6.0)
    (part,) = importing.import_corpus(tmp_path / "corpus", tmp_path / "m.jsonl", splits=["train"]).values()
    assert [row["text"] for row in part.rows] == list(expected["train"].values())
