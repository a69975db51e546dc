"""Suites: their files, the tasks that they give, and what keeps them apart from training data."""

import json
import os

import pytest
from ml_collections import ConfigDict

from hra_jax.config.files import load_config, ready_made_names
from hra_jax.data.corpora import catalogue, registry
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation import suites

SPEAKERS = ["jackson", "george", "jackson", "theo"]


def write_manifest(folder, name="test.jsonl", speakers=SPEAKERS, **more):
    rows = [
        {"audio_filepath": f"audio/{i}.flac", "duration": 1.0, "text": f"text {i}", "speaker": speaker, **more}
        for i, speaker in enumerate(speakers)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def build(folder, *tasks, report=None, **changes):
    config = ConfigDict({"name": "digits", "normalizer": "basic", "tasks": tasks} | changes)
    return suites.build_suite(config, data_dir=str(folder), report=report or DataReport())


def utterance(path, offset=0.0, key=None):
    return Utterance(audio_filepath=path, duration=1.0, text="one", offset=offset, key=key or path, line=1)


BY_SPEAKER = ("*", "{dir}/test.jsonl", "speaker=*", "*")


def test_one_row_by_tag_makes_every_value_a_task_with_its_own_adapter(tmp_path):
    write_manifest(tmp_path)
    suite = build(tmp_path, BY_SPEAKER)
    assert [(task.name, task.adapter_task) for task in suite.tasks] == [(name,) * 2 for name in sorted(set(SPEAKERS))]
    for task in suite.tasks:
        assert [u.tags["speaker"] for u in task.utterances] == [task.name] * SPEAKERS.count(task.name)
        assert task.manifest == f"{tmp_path}/test.jsonl"
        assert (task.tag, task.tag_value) == ("speaker", task.name)
    assert len(suite.utterances) == len(SPEAKERS)


def test_rows_map_tasks_to_the_base_to_the_mean_and_to_other_adapters(tmp_path):
    write_manifest(tmp_path)
    suite = build(
        tmp_path,
        ("all", "{dir}/test.jsonl", "", "__base__"),
        ("mean *", "{dir}/test.jsonl", "speaker=*", "__mean__"),
        ("george as theo", "{dir}/test.jsonl", "speaker=george", "theo"),
        ("* noisy", "{dir}/test.jsonl", "speaker=*", "* v2"),
    )
    found = {task.name: (task.adapter_task, len(task.utterances)) for task in suite.tasks}
    assert found["all"] == ("__base__", 4)
    assert found["mean jackson"] == ("__mean__", 2)
    assert found["george as theo"] == ("theo", 1)
    assert found["theo noisy"] == ("theo v2", 1)


def test_ready_made_suites_load_and_have_the_name_of_their_file(tmp_path):
    for split in ("test", "validation"):
        write_manifest(tmp_path, f"{split}.jsonl")
    names = ready_made_names(kind="suites")
    assert set(names) >= {"fsdd", "fsdd_validation", "hard", "hard_validation", "plain", "plain_validation"}
    public = {name for name in names if name.startswith(("librispeech", "common_voice", "user_libri"))}
    for name in public:
        config = load_config(name, kind="suites")
        assert config.name == name
        for _, source, _, _ in config.tasks:
            corpus, split = registry.name_and_split(source)
            parts = catalogue.sources_of(corpus, split)  # both are known
            assert all(part.startswith(("dev", "validation") if "validation" in name else "test") for part in parts)
    for name in set(names) - public:
        suite = suites.load_suite(name, data_dir=str(tmp_path), report=DataReport())
        assert suite.name == name
        assert {os.path.basename(task.manifest) for task in suite.tasks} == {
            "validation.jsonl" if name.endswith("_validation") else "test.jsonl"
        }
        adapters = ["__base__"] if name.startswith("plain") else sorted(set(SPEAKERS))
        if name.endswith("heldout"):
            adapters = ["__few__"] * len(set(SPEAKERS))
        assert [task.adapter_task for task in suite.tasks] == adapters


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_a_byte_order_mark_of_any_editor_change_no_suite(tmp_path, end, encoding):
    lines = [
        "from ml_collections import ConfigDict",
        "def get_config():",
        "    rows = (('één', '{dir}/test.jsonl', '', '__base__'),)",
        "    return ConfigDict({'name': 'mine', 'normalizer': 'basic', 'tasks': rows})",
    ]
    (tmp_path / "mine.py").write_text(end.join(lines), encoding=encoding, newline="")
    with (tmp_path / "test.jsonl").open("w", encoding=encoding, newline="") as file:
        for number in range(2):
            row = {"audio_filepath": f"{number}.wav", "duration": 1.0, "text": "deux été"}
            file.write(json.dumps(row, ensure_ascii=False) + end)
    report = DataReport(strict=True)
    (task,) = suites.load_suite(str(tmp_path / "mine.py"), data_dir=str(tmp_path), report=report).tasks
    assert task.name == "één" and [found.text for found in task.utterances] == ["deux été"] * 2


def test_a_suite_file_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    return 1\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"mine\.py: ") as caught:
        suites.load_suite(str(tmp_path / "mine.py"), data_dir=str(tmp_path), report=DataReport())
    assert str(caught.value).isprintable()


def test_a_suite_file_is_found_by_path(tmp_path):
    write_manifest(tmp_path)
    rows = "((' one', '{dir}/test.jsonl', 'speaker=theo', 'theo'),)"
    config = f"ConfigDict(dict(name='mine', normalizer='none', tasks={rows}))"
    (tmp_path / "mine.py").write_text(
        f"from ml_collections import ConfigDict\n\ndef get_config():\n    return {config}\n"
    )
    suite = suites.load_suite(str(tmp_path / "mine.py"), data_dir=str(tmp_path), report=DataReport())
    assert (suite.name, suite.normalizer, len(suite.utterances)) == ("mine", "none@2", 1)
    with pytest.raises(UserError, match="'fsd'.*'fsdd'"):
        suites.load_suite("fsd", data_dir=str(tmp_path), report=DataReport())


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ((BY_SPEAKER,), {"normalizer": "loud"}, "'loud' is unknown; allowed: none, lower, basic"),
        ((BY_SPEAKER,), {"name": "../up"}, "'../up'; allowed: letters"),
        ((BY_SPEAKER,), {"colour": 1}, "no key 'colour'; allowed: name, normalizer, tasks"),
        ((), {}, "must be a tuple of rows"),
        ((("a", "{dir}/test.jsonl", ""),), {}, "four strings; got"),
        ((("a", "{dir}/gone.jsonl", "", "a"),), {}, "gone.jsonl"),
        ((("a", "{dir}/test.jsonl", "speaker", "a"),), {}, "'speaker' must be '', 'tag=value' or"),
        ((("a", "{dir}/test.jsonl", "speaker=*", "*"),), {}, "gives many tasks"),
        ((("*", "{dir}/test.jsonl", "", "a"),), {}, "needs the tag filter"),
        ((("a", "{dir}/test.jsonl", "speaker=nobody", "a"),), {}, "values of 'speaker' there: 'george', 'jackson'"),
        ((("*", "{dir}/test.jsonl", "accent=*", "*"),), {}, "values of 'accent' there: none"),
        ((BY_SPEAKER, BY_SPEAKER), {}, "2 tasks named 'george'"),
        ((("__base__", "{dir}/test.jsonl", "", "__base__"),), {}, "'__base__', which cannot be the name"),
        ((BY_SPEAKER,), {"normalizer": "basic@7"}, "suite 'digits': normalizer 'basic@7': no such version; allowed"),
        ((BY_SPEAKER,), {"metric": "ser"}, "metric 'ser' is unknown; allowed: wer, cer"),
        (((*BY_SPEAKER, "ser"),), {}, "metric 'ser' is unknown; allowed: wer, cer"),
        ((BY_SPEAKER,), {"block": ""}, "block must be the name of a tag"),
        ((BY_SPEAKER,), {"slices": "accent"}, "slices must be a tuple of tags"),
        ((BY_SPEAKER,), {"slices": ("seconds:5,2",)}, "'seconds:5,2'; allowed are ascending seconds"),
        ((BY_SPEAKER,), {"slices": ("speeker",)}, "suite 'digits': no utterance has the tag 'speeker'; did you mean"),
        ((BY_SPEAKER,), {"block": "room"}, "no utterance has the tag 'room'; allowed: speaker"),
        ((BY_SPEAKER,), {"slices": ("seconds:",)}, "'seconds:'; allowed are ascending seconds"),
        ((BY_SPEAKER,), {"decode": "beam"}, "suite 'digits', decode = 'beam'; allowed: pairs such as"),
        ((BY_SPEAKER,), {"decode": (("beem", 8),)}, "suite 'digits', decode: unknown key 'beem'; did you mean 'beam'"),
        ((BY_SPEAKER,), {"decode": (("beam", -1),)}, "suite 'digits', decode: decode.beam = -1: allowed"),
        ((BY_SPEAKER,), {"decode": (("beam", 8), ("beam", 9))}, "suite 'digits', decode: .*twice"),
        ((BY_SPEAKER,), {"decode": (("chunk_seconds", 2.0),) * 2}, "decode: the key 'chunk_seconds' is given twice"),
        ((BY_SPEAKER,), {"decode": (("chunk_seconds", 0),)}, "suite 'digits', decode: "),
    ],
)
def test_a_wrong_suite_is_one_clear_line(tmp_path, tasks, changes, message):
    write_manifest(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        build(tmp_path, *tasks, **changes)
    assert "\n" not in str(error.value)


def test_what_decides_is_given_for_a_suite_or_for_a_row(tmp_path):
    write_manifest(tmp_path)
    plain = build(tmp_path, BY_SPEAKER)
    assert (plain.metric, plain.block, plain.slices) == ("wer", "speaker", ())
    assert {task.metric for task in plain.tasks} == {"wer"}
    rows = (("one", "{dir}/test.jsonl", "", "a"), ("two", "{dir}/test.jsonl", "", "a", "wer"))
    write_manifest(tmp_path, accent="x")
    suite = build(tmp_path, *rows, metric="cer", block="accent", slices=("speaker", "seconds:2,5.5"))
    assert (suite.metric, suite.block, suite.slices) == ("cer", "accent", ("speaker", "seconds:2,5.5"))
    assert [task.metric for task in suite.tasks] == ["cer", "wer"]
    assert [suites.duration_edges(item, suite="s") for item in suite.slices] == [(), (2.0, 5.5)]


def test_a_suite_may_say_how_it_is_decoded_and_its_digest_is_another_one_only_then(tmp_path):
    write_manifest(tmp_path)
    plain, empty, cut, decoded, both = (
        build(tmp_path, BY_SPEAKER, **({} if pairs is None else {"decode": pairs}))
        for pairs in (
            None,
            (),
            (("chunk_seconds", 2.0),),
            (("beam", 8), ("phrases", ("one two",))),
            (("chunk_seconds", 2.0), ("beam", 8), ("phrases", ("one two",))),
        )
    )
    assert (plain.decode, plain.chunk_seconds) == ({}, 0.0)
    assert (both.decode, both.chunk_seconds) == ({"beam": 8, "phrases": ("one two",)}, 2.0)
    assert suites.suite_digest(empty) == suites.suite_digest(plain)
    assert len({suites.suite_digest(suite) for suite in (plain, cut, decoded, both)}) == 4


def test_a_missing_key_a_missing_folder_and_an_empty_manifest_are_errors(tmp_path):
    write_manifest(tmp_path)
    with pytest.raises(UserError, match="needs the key 'tasks'"):
        config = ConfigDict({"name": "digits", "normalizer": "basic"})
        suites.build_suite(config, data_dir=str(tmp_path), report=DataReport())
    with pytest.raises(UserError, match="give --config.data.dir"):
        build("", BY_SPEAKER)
    write_manifest(tmp_path, "empty.jsonl", [])
    for row in (("a", "{dir}/empty.jsonl", "", "a"), ("*", "{dir}/empty.jsonl", "speaker=*", "*")):
        with pytest.raises(UserError, match="empty.jsonl"):
            build(tmp_path, row)


def test_lines_without_the_tag_are_reported_and_the_others_scored(tmp_path):
    write_manifest(tmp_path)
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write(json.dumps({"audio_filepath": "x.flac", "duration": 1.0, "text": "x"}) + "\n")
    report = DataReport()
    assert len(build(tmp_path, BY_SPEAKER, report=report).utterances) == len(SPEAKERS)
    assert report.counts()["missing_field"] == 1
    with pytest.raises(UserError, match="test.jsonl:5"):
        build(tmp_path, BY_SPEAKER, report=DataReport(strict=True))


def test_a_task_whose_lines_are_all_unusable_is_no_task_and_is_named_as_lost(tmp_path):
    rows = write_manifest(tmp_path)
    bad = [row | ({"duration": 0} if row["speaker"] != "george" else {}) for row in rows] + [rows[0] | {"text": 3}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad) + "no JSON\n")
    suite = build(tmp_path, BY_SPEAKER, ("all", "{dir}/test.jsonl", "", "__base__"))
    assert [(task.name, len(task.utterances), task.size) for task in suite.tasks] == [("george", 1, 1), ("all", 1, 6)]
    assert [(task.name, task.adapter_task, task.size) for task in suite.lost] == [
        ("jackson", "jackson", 3),
        ("theo", "theo", 1),
    ]
    assert suite.lost[1].refused[0].key == "audio/3.flac"
    assert suite.lost[1].refused[0].why == "empty_audio: duration is 0"
    assert len(suite.utterances) == 2
    with pytest.raises(
        UserError, match=r"task 'theo': none of its 1 utterances is usable, such as audio/3.flac \(empty"
    ):
        build(tmp_path, ("theo", "{dir}/test.jsonl", "speaker=theo", "theo"))


def test_an_unknown_adapter_task_is_an_error_with_near_matches(tmp_path):
    write_manifest(tmp_path)
    suite = build(tmp_path, BY_SPEAKER, ("all", "{dir}/test.jsonl", "", "__base__"))
    suites.check_adapter_tasks(suite, ["theo", "george", "jackson", "unused"])
    with pytest.raises(UserError, match="'jackson'; did you mean 'jacksen'"):
        suites.check_adapter_tasks(suite, ["theo", "george", "jacksen"])
    with pytest.raises(UserError, match="allowed: .*'?__base__"):
        suites.check_adapter_tasks(suite, [])


def test_a_shared_recording_is_an_error_that_names_it():
    training = [utterance(f"/d/audio/{i}.wav") for i in range(10)]
    suites.check_disjoint([utterance("/d/audio/10.wav")], training, suite="digits")
    scored = [utterance(f"/d/audio/{i}.wav", key=f"audio/{i}.wav") for i in (1, 12, 3, 5, 7)]
    with pytest.raises(UserError, match=r"shares 4 utterances with training data, such as 'audio/1.wav'.* and 1 more"):
        suites.check_disjoint(scored, training, suite="digits")
    with pytest.raises(UserError, match="with selection data"):
        suites.check_disjoint(scored, training, suite="digits", other="selection")


def test_other_parts_of_a_recording_and_equal_names_elsewhere_are_not_shared():
    training = [utterance("/a/audio/1.wav", offset=0.0, key="audio/1.wav")]
    suites.check_disjoint([utterance("/a/audio/1.wav", offset=5.0)], training, suite="digits")
    suites.check_disjoint([utterance("/b/audio/1.wav", key="audio/1.wav")], training, suite="digits")
    suites.check_disjoint([utterance("gs://a/audio/1.wav", key="audio/1.wav")], training, suite="digits")


def test_a_link_to_a_recording_and_a_part_of_it_are_shared(tmp_path):
    (tmp_path / "1.wav").write_bytes(b"audio")
    (tmp_path / "link.wav").symlink_to(tmp_path / "1.wav")
    training = [utterance(str(tmp_path / "1.wav"), offset=5.0)]
    for name, offset in (("link.wav", 5.0), ("1.wav", 5.5), ("link.wav", 4.1)):
        with pytest.raises(UserError, match="shares 1 utterance"):
            suites.check_disjoint([utterance(str(tmp_path / name), offset=offset)], training, suite="digits")
    suites.check_disjoint([utterance(str(tmp_path / "link.wav"), offset=6.0)], training, suite="digits")


def test_a_recording_is_the_same_through_another_path(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    training = [utterance(str(tmp_path / "real" / "1.wav"))]
    for path in (tmp_path / "link" / "1.wav", tmp_path / "real" / ".." / "link" / "1.wav"):
        with pytest.raises(UserError, match="shares 1 utterance"):
            suites.check_disjoint([utterance(str(path))], training, suite="digits")


FEW = ("*", "{dir}/test.jsonl", "speaker=*", "__few__")
SUPPORT = {"support": "{dir}/train.jsonl", "shots": (0, 1, 10), "draws": 5}


def test_a_suite_says_what_heads_of_a_few_utterances_train_on(tmp_path):
    write_manifest(tmp_path)
    suite = build(tmp_path, FEW, ("* base", "{dir}/test.jsonl", "speaker=*", "__base__"), **SUPPORT)
    assert (suite.support, suite.shots, suite.draws) == (f"{tmp_path}/train.jsonl", (0, 1, 10), 5)
    assert [task.adapter_task for task in suite.tasks] == ["__few__"] * 3 + ["__base__"] * 3
    plain = build(tmp_path, BY_SPEAKER)
    assert (plain.support, plain.shots, plain.draws) == ("", (), 0)


@pytest.mark.parametrize(
    ("row", "changes", "line"),
    [
        (BY_SPEAKER, SUPPORT, "suite 'digits': support needs a row with the adapter task '__few__'"),
        (FEW, {}, "suite 'digits': the adapter task '__few__' needs the key 'support'"),
        (FEW, SUPPORT | {"support": ""}, "suite 'digits': support = ''; allowed: the path of a manifest"),
        (FEW, SUPPORT | {"shots": ()}, r"shots = \(\); allowed: ascending integers from 0, at least one"),
        (FEW, SUPPORT | {"shots": (1, 1)}, r"shots = \(1, 1\); allowed: ascending integers"),
        (FEW, SUPPORT | {"shots": (-1, 1)}, r"shots = \(-1, 1\); allowed: ascending integers"),
        (FEW, SUPPORT | {"shots": (True,)}, r"shots = \(True,\); allowed: ascending integers"),
        (FEW, SUPPORT | {"draws": 0}, "draws = 0; allowed: an integer of at least 1"),
    ],
)
def test_wrong_settings_of_few_utterances_are_one_line_each(tmp_path, row, changes, line):
    write_manifest(tmp_path)
    with pytest.raises(UserError, match=line):
        build(tmp_path, row, **changes)
