"""The table of utterances: what is left out is named, and a task is what its tag says."""

import json

import numpy as np
import pytest

from hra_jax.data.manifest import Utterance
from hra_jax.data.report import DataReport
from hra_jax.data.sources import TableSource, read_sources
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.errors import UserError
from hra_jax.models.ctc import augmented_length
from hra_jax.text.normalization import normalize_text
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import CharacterVocabulary

RATE = 8000


def _utterance(key, *, duration=1.0, text="turn it on", **tags):
    return Utterance(f"{key}.wav", duration, text, tags=tags, key=f"{key}.wav")


def _table(*sources, report=None, **settings):
    settings = {"normalizer": "basic", "task_tag": "speaker", "max_seconds": 4.0} | settings
    sources = [
        source if isinstance(source, TableSource) else TableSource(f"source{i}", source)
        for i, source in enumerate(sources)
    ]
    return UtteranceTable(
        sources,
        vocabulary=CharacterVocabulary(),
        sample_rate=RATE,
        output_length=lambda samples: samples // 160,
        report=report or DataReport(),
        **settings,
    )


def _named(report):
    return {kind: {row["name"]: row["detail"] for row in rows} for kind, rows in report.to_json()["utterances"].items()}


ROWS = [
    _utterance("good", speaker="anna"),
    _utterance("long", duration=4.5, speaker="anna"),
    _utterance("short", duration=0.1, text="sevens", speaker="ben"),
    _utterance("exact", duration=0.1, text="seven", speaker="ben"),
    _utterance("repeats", duration=0.1, text="seee", speaker="ben"),
    _utterance("foreign", text="caf\u00e9 no 5", speaker="ben"),
    _utterance("digits", text="12 ...", speaker="ben"),
    _utterance("nobody"),
]


def test_unusable_utterances_are_left_out_and_named_with_their_reason():
    report = DataReport()
    table = _table(ROWS, report=report, max_seconds=4.0)
    assert [row.key for row in table.utterances] == ["good.wav", "exact.wav", "foreign.wav"]
    assert _named(report) == {
        "too_long": {"source0: long.wav": "4.5 s; the limit is 4 s"},
        "too_short": {
            # 0.1 s are 5 frames of 160 samples; "seee" has four labels and two repeats.
            "source0: short.wav": "5 frames of 0.1 s; its labels need 6",
            "source0: repeats.wav": "5 frames of 0.1 s; its labels need 6",
        },
        "unknown_text": {
            "source0: foreign.wav": "dropped '5' '\u00e9'",
            "source0: digits.wav": "dropped '1' '2'; nothing is left of '12 ...'",
        },
        "missing_field": {"source0: nobody.wav": "there is no tag 'speaker'"},
    }


def test_evaluation_keeps_utterances_that_ctc_could_not_learn_from():
    report = DataReport()
    table = _table(ROWS, report=report, for_training=False)
    left_out = {"long.wav", "nobody.wav"}
    assert [row.key for row in table.utterances] == [row.key for row in ROWS if row.key not in left_out]
    assert "too_short" not in _named(report)
    assert "source0: digits.wav" in _named(report)["unknown_text"]


def test_columns_describe_the_utterances():
    table = _table([_utterance("a", text="See!", speaker="z")], [_utterance("b", duration=2, speaker="k")])
    assert table.rows.tolist() == [0, 0]
    np.testing.assert_array_equal(table.labels(0), CharacterVocabulary().encode("see"))
    assert table.frames_needed.tolist() == [4, 10]
    assert table.label_lengths.tolist() == [3, 10]
    assert table.duration.tolist() == [1.0, 2.0]
    assert (table.source.tolist(), table.starts.tolist()) == ([0, 1], [0, 1, 2])
    assert (table.index(1, 0), table.lookup(1, 0), table.name(1)) == (1, (2.0, 0), "source1: b.wav")
    assert [(spec.name, spec.rows, spec.rate) for spec in table.specs()] == [
        ("source0", 1, "proportional"),
        ("source1", 1, "proportional"),
    ]


def test_tasks_are_the_sorted_values_of_the_tag_or_those_named_in_that_order():
    rows = [_utterance(str(i), speaker=name) for i, name in enumerate(["m", "c", 7, "m"])]
    table = _table(rows)
    assert (table.task_names, table.task.tolist()) == (("7", "c", "m"), [2, 1, 0, 2])
    chosen = _table(rows, tasks=("m", "c"))
    assert (chosen.task_names, chosen.task.tolist(), chosen.unselected) == (("m", "c"), [0, 1, 0], 1)


def test_without_a_task_tag_everything_is_the_base():
    table = _table([_utterance("a"), _utterance("b", speaker="x")], task_tag="")
    assert (table.task_names, table.task.tolist()) == ((), [-1, -1])


def test_a_source_can_name_the_task_of_all_its_utterances():
    sources = [TableSource("suite a", [_utterance("a")], task="anna"), TableSource("suite b", [_utterance("a")])]
    table = _table(*sources, tasks=("ben", "anna"), task_tag="", for_training=False)
    assert table.task.tolist() == [1, -1]
    base = _table(TableSource("base", [_utterance("a")], task="__base__"), tasks=("ben",), for_training=False)
    assert base.task.tolist() == [-1]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"tasks": ("ana",)},
            "task 'ana' is not a value of the tag 'speaker'.*did you mean 'anna'.*allowed: anna, ben",
        ),
        ({"tasks": ("xyz",)}, "task 'xyz' is not .*; allowed: anna, ben"),
        ({"tasks": ("anna", "anna")}, "task 'anna' is given twice"),
        ({"tasks": ("__base__",)}, "'__base__' is reserved"),
        ({"normalizer": "loud"}, "'loud'"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(settings, message):
    with pytest.raises(UserError, match=message):
        _table(ROWS, **settings)


def test_a_suite_task_that_the_adapter_lacks_is_an_error_with_near_matches():
    with pytest.raises(UserError, match="'anne' is not a task of the adapter; did you mean 'anna'"):
        _table(TableSource("suite", ROWS, task="anne"), tasks=("anna", "ben"), for_training=False)


def test_a_reserved_tag_value_and_a_source_given_twice_are_errors():
    with pytest.raises(UserError, match="reserved"):
        _table([_utterance("a", speaker="__base__")])
    with pytest.raises(UserError, match="source name 'x' is given twice"):
        _table(TableSource("x", ROWS), TableSource("x", ROWS))


def test_a_table_without_a_usable_utterance_is_an_error_with_the_counts():
    with pytest.raises(UserError, match="all 3 were left out .*2 too_long.*1 of other tasks"):
        _table(
            [_utterance("a", duration=9, speaker="a"), _utterance("b", duration=9, speaker="a")],
            [_utterance("c", speaker="c")],
            tasks=("a",),
        )


def test_a_strict_report_makes_the_first_bad_utterance_an_error():
    with pytest.raises(UserError, match="too_long: source0: long.wav"):
        _table(ROWS[:2], report=DataReport(strict=True))


def test_sources_are_read_from_manifests_and_bad_lines_reported(tmp_path):
    path = tmp_path / "m.jsonl"
    line = json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": "yes", "speaker": "anna"})
    path.write_text(line + "\n{broken\n")
    report = DataReport()
    sources = read_sources([("mine", str(path), 2.0)], report=report)
    table = _table(*sources, report=report)
    assert (table.specs()[0].rate, table.name(0), len(table)) == (2.0, "mine: a.wav", 1)
    assert report.counts()["bad_json"] == 1


def _by_hand(sources, *, task_names, vocabulary_of, max_seconds):
    """What `UtteranceTable` says of its columns, one utterance after the other."""
    found = []
    for number, rows in enumerate(sources):
        for at, row in enumerate(rows):
            task = row.tag("speaker")
            if task is None or row.duration > max_seconds:
                continue
            labels = vocabulary_of(task).encode(normalize_text(row.text, "basic"))
            if labels and round(row.duration * RATE) // 160 >= augmented_length(labels):
                found.append((number, at, row.duration, task_names.index(task), tuple(labels)))
    return found


@pytest.mark.parametrize("own", ["none", "each", "all"])
def test_columns_are_those_of_a_loop_over_utterances(own):
    random = np.random.default_rng(3)
    words = ["see", "Abba,", "caf\u00e9", "...", "turn it", "12", "zzz", "\u00c9t\u00e9"]
    names = ("anna", "ben", "cy", None)
    sources = [
        [
            _utterance(
                f"{i}",
                duration=float(np.round(random.exponential(1.5), 3) + 0.01),
                text=" ".join(random.choice(words, random.integers(0, 6))),
                **({"speaker": name} if (name := names[random.integers(4)]) else {}),
            )
            for i in range(size)
        ]
        for size in (137, 0, 41)
    ]
    base = CharacterVocabulary()
    by_task = {name: CharacterVocabulary(sorted(set(f"{name} set\u00e9"))) for name in names[:3]}
    given = {
        "none": None,
        "each": OwnVocabularies(base, by_task, 40),
        "all": OwnVocabularies(base, {}, 40, by_task["anna"]),
    }[own]
    table = _table(*sources, own=given, max_seconds=4.0)
    expected = _by_hand(
        sources,
        task_names=table.task_names,
        vocabulary_of=(lambda task: base) if given is None else given.of,
        max_seconds=4.0,
    )
    columns = zip(table.source.tolist(), table.rows.tolist(), table.duration.tolist(), table.task.tolist(), strict=True)
    assert [(*row, tuple(table.labels(i).tolist())) for i, row in enumerate(columns)] == expected
    assert [row.key for row in table.utterances] == [sources[s][r].key for s, r, *_ in expected]
    assert table.utterances[-1] is sources[2][expected[-1][1]]
    assert table.label_lengths.tolist() == [len(labels) for *_, labels in expected]
    assert table.frames_needed.tolist() == [augmented_length(labels) for *_, labels in expected]


def test_the_digest_of_a_table_is_that_of_earlier_versions():
    # Stored in checkpoints: a run goes on with the data that it began with.
    table = _table([row for row in ROWS if row.key != "nobody.wav"], [_utterance("more", speaker="cy")])
    assert table.digest() == "2e2d7efdb12919f0cecb4de0f04574695db0222adaf6e4df2ac33df526d934b1"


def test_a_strict_report_names_the_first_utterance_whatever_is_wrong_with_it():
    rows = [_utterance("x", text="5", speaker="a"), _utterance("nobody"), _utterance("y", duration=9, speaker="a")]
    for order, first in (((0, 1, 2), "unknown_text: source0: x"), ((2, 0, 1), "too_long: source0: y"), ((1, 0), "mis")):
        with pytest.raises(UserError, match=f"^{first}"):
            _table([rows[i] for i in order], report=DataReport(strict=True))
