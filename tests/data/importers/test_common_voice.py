"""Common Voice: tags, quotes, empty cells, and the splits that hold the test set."""

import pytest
from reference import corpus_trees

from hra_jax.data.importers import importing
from hra_jax.data.importers.corpus import unquoted
from hra_jax.errors import UserError


def test_tags_are_the_columns_of_either_version(tmp_path):
    corpus_trees.common_voice(tmp_path / "corpus")
    rows = importing.import_corpus(tmp_path / "corpus", tmp_path / "out")[str(tmp_path / "out" / "train.jsonl")].rows
    irish, dutch, silent = rows
    about = ("age", "gender", "accent", "locale")
    assert [irish[name] for name in about] == ["twenties", "female_feminine", "Connacht, Gaillimh", "ga-IE"]
    assert [dutch[name] for name in about] == ["fourties", "male", "netherlands", "nl"]
    assert not {"age", "gender", "accent", "segment", "variant"} & set(silent)
    assert len(irish["speaker"]) == 128 and dutch["speaker"] == silent["speaker"] != irish["speaker"]
    assert irish["sentence_domain"] == "general" and not {"path", "sentence", "client_id", "accents"} & set(irish)


def test_what_holds_the_test_set_is_left_alone_unless_it_is_named(tmp_path, capsys):
    corpus_trees.common_voice(tmp_path / "corpus")
    found = importing.import_corpus(tmp_path / "corpus", tmp_path / "out")
    assert [part.split.name for part in found.values()] == ["train", "validation", "test"]
    assert "left alone unless it is named: validated (--splits)" in capsys.readouterr().out
    (part,) = importing.import_corpus(tmp_path / "corpus", tmp_path / "out", splits=["validated"]).values()
    assert len(part.rows) == 3 and "no validated.tsv in ga-IE" in capsys.readouterr().out
    for name in ("train", "dev", "test"):
        (tmp_path / "corpus" / "nl" / f"{name}.tsv").unlink()
    with pytest.raises(UserError, match=r"nothing to import unless it is named; allowed: --splits=validated"):
        importing.import_corpus(tmp_path / "corpus" / "nl", tmp_path / "out")


def test_rows_that_lack_a_cell_are_named(tmp_path):
    corpus_trees.common_voice(tmp_path / "corpus")
    table = tmp_path / "corpus" / "nl" / "train.tsv"
    header, first, _ = table.read_text().splitlines()
    cells = first.split("\t")
    no_sentence = "\t".join([*cells[:2], "", *cells[3:]])
    no_path = "\t".join([cells[0], "", *cells[2:]])
    corpus_trees.write(table, header, "\t".join(cells[:5]), no_sentence, no_path, f"{first}\tmore", first)
    (part,) = importing.import_corpus(tmp_path / "corpus" / "nl", tmp_path / "m.jsonl", splits=["train"]).values()
    assert [row["text"] for row in part.rows] == ["Ik vind dat een dubieuze procedure."]
    bad = part.report.to_json()["utterances"]
    assert [row["name"] for row in bad["missing_field"]] == [f"nl/train.tsv:{number}" for number in (2, 4, 5)]
    assert [row["name"] for row in bad["no_text"]] == ["nl/train.tsv:3"]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('"""Ja"", zei hij."', '"Ja", zei hij.'),
        ('"Fáilte."', '"Fáilte."'),
        ('"Nee" zei "ja"', '"Nee" zei "ja"'),
        ('say ""x""', 'say ""x""'),
        ('""', '""'),
        ('"', '"'),
        ("", ""),
    ],
)
def test_only_quotes_that_a_writer_of_tables_has_added_are_taken_off(cell, expected):
    assert unquoted(cell) == expected
