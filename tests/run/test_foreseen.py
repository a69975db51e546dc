"""What is known before the first step is refused there: names, tasks that cannot train, tasks that cannot be scored."""

import time
from pathlib import Path

import pytest
from etils import epath
from reference import micro as world

from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run.foreseen import missing_files
from hra_jax.run.stages import prepare

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture
def one_device(monkeypatch):
    world.use_devices(monkeypatch, 1)


@pytest.fixture
def data(micro, tmp_path) -> Path:
    """The manifests of the micro data, to be spoilt; the audio is where it was."""
    (tmp_path / "data").mkdir()
    for split in world.TEXTS:
        rows = world.read_manifest(micro.data / f"{split}.jsonl")
        for row in rows:
            row["audio_filepath"] = str(micro.data / row["audio_filepath"])
        world.write_manifest(tmp_path / "data" / f"{split}.jsonl", rows)
    return tmp_path / "data"


def spoil(data: Path, split: str, whose: str, **changes) -> None:
    """Changes fields of all lines of a speaker."""
    rows = world.read_manifest(data / f"{split}.jsonl")
    rows = [row | (changes if row["speaker"] == whose else {}) for row in rows]
    world.write_manifest(data / f"{split}.jsonl", rows)


def start(micro, data, *, begins: bool = True):
    """The run before its first step, and its report of data."""
    report = DataReport()
    config = micro.config(
        data__dir=str(data), eval__suite=micro.suite("test"), eval__select_suite=micro.suite("validation")
    )
    return prepare(config, data.parent / "W", report, begins=begins), report


def refused(micro, data) -> str:
    with pytest.raises(UserError) as caught:
        start(micro, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["ann\u00a0b", "ann\tb", "ann\nb", "ann\u200b", "\ufeffann", "ann\u202eb"])
def test_a_name_that_cannot_be_exported_is_refused_before_the_first_step(micro, data, name):
    for split in world.TEXTS:
        spoil(data, split, "ann", speaker=name)
    line = refused(micro, data)
    assert line.startswith(f"the training data: a task cannot have the name {name!r}; allowed: printable characters")


@pytest.mark.parametrize("value", [None, "", "  ", [], {}, ["ann"]])
def test_a_task_tag_with_nothing_in_it_is_a_missing_field(micro, data, value):
    rows = world.read_manifest(data / "train.jsonl")
    world.write_manifest(data / "train.jsonl", [*rows, rows[0] | {"speaker": value}])
    tests = world.read_manifest(data / "test.jsonl")
    world.write_manifest(data / "test.jsonl", [*tests, tests[0] | {"speaker": value}])
    run, report = start(micro, data)
    assert run.layout.tasks == world.SPEAKERS
    named = {row["detail"] for row in report.to_json()["utterances"]["missing_field"]}
    told = "the tag 'speaker' is " if isinstance(value, list | dict) else "there is nothing in the tag 'speaker'"
    assert any(detail.startswith(told) for detail in named) and len(report.to_json()["utterances"]) == 1


def test_a_task_that_has_no_usable_training_utterance_is_refused_by_name(micro, data):
    spoil(data, "train", "bob", duration=9.0)
    line = refused(micro, data)
    assert line.startswith("task 'bob': none of its 4 training utterances is usable, such as micro: ")
    assert "(too_long: 9 s; the limit is 1 s)" in line and "data.tasks" in line


@pytest.mark.parametrize("changes", [{"audio_filepath": "http://a/b.wav"}, {"duration": 0}, {"text": None}])
def test_a_task_whose_lines_cannot_be_used_is_refused_by_name_as_one_whose_audio_cannot(micro, data, changes):
    spoil(data, "train", "bob", **changes)
    line = refused(micro, data)
    assert line.startswith("task 'bob': none of its 4 training utterances is usable, such as ")
    assert line.endswith("suite 'test' needs the adapter")
    for split in ("test", "validation"):
        spoil(data, split, "bob", **changes)
    line = refused(micro, data)
    assert line.startswith("task 'bob': none of its 4 training utterances is usable, such as micro: ")
    assert line.endswith("mend the manifest, or name the tasks to train in data.tasks")
    # A run that has begun goes on as it was.
    run, _ = start(micro, data, begins=False)
    assert run.layout.tasks == tuple(name for name in world.SPEAKERS if name != "bob")
    assert [task.name for task in run.layout.test.suite.lost] == ["bob"]


def test_of_the_tasks_to_train_one_without_a_usable_line_is_told_from_one_that_is_not_there(micro, data):
    spoil(data, "train", "bob", duration=0)
    for names, told in ((("ann", "bob"), "none of its 4 training utterances is usable"), (("bo",), "is not a value")):
        config = micro.config(data__dir=str(data), data__tasks=names, eval__suite="", eval__select_suite="")
        with pytest.raises(UserError, match=told):
            prepare(config, data.parent / "W", DataReport(), begins=True)


@pytest.mark.parametrize(
    ("split", "changes", "told"),
    [
        ("test", {"text": "..."}, "the references of its 2 utterances hold 0 words after the normalizer 'basic@2'"),
        ("validation", {"text": " \u200b "}, "the references of its 2 utterances hold 0 words"),
        ("test", {"duration": 9.0}, "none of its 2 utterances is usable, such as bob: "),
        ("validation", {"audio_filepath": "gone.flac"}, "(missing_file: no file at "),
        ("validation", {"audio_filepath": "file:///gone/a.flac"}, "(missing_file: no file at file:///gone/a.flac)"),
        ("test", {"audio_filepath": "http://a/b.wav"}, "such as bob: http://a/b.wav (unreachable_audio: "),
        ("validation", {"duration": 0}, "(empty_audio: duration is 0)"),
    ],
)
def test_a_task_that_a_suite_cannot_score_is_refused_with_suite_task_and_the_way_out(micro, data, split, changes, told):
    spoil(data, split, "bob", **changes)
    line = refused(micro, data)
    assert line.startswith(f"suite '{split}', task 'bob': ") and told in line
    assert line.endswith("--config.eval.suite=" if split == "test" else "--config.eval.select_suite=")


@pytest.mark.parametrize(("split", "key"), [("test", "eval.suite"), ("validation", "eval.select_suite")])
def test_a_suite_of_which_no_utterance_is_usable_is_refused_with_its_name_and_the_way_out(micro, data, split, key):
    for speaker in world.SPEAKERS:
        spoil(data, split, speaker, duration=9.0)
    line = refused(micro, data)
    assert line.startswith(f"suite '{split}': no usable utterance: all 6 were left out (6 undecodable_audio")
    assert line.endswith(f"mend the manifest, or train without the suite: --config.{key}=")


def test_single_utterances_that_cannot_be_scored_are_counted_and_named_and_hold_nothing_up(micro, data):
    rows = world.read_manifest(data / "test.jsonl")
    rows[0]["audio_filepath"], rows[2]["text"] = "gone.flac", "..."
    world.write_manifest(data / "test.jsonl", rows)
    _, report = start(micro, data)
    (named,) = report.to_json()["utterances"]["missing_file"]
    assert named["name"] == "ann: gone.flac" and named["detail"] == f"no file at {data / 'gone.flac'}"


def test_what_cannot_be_scored_does_not_hold_up_a_run_that_has_begun(micro, data):
    spoil(data, "test", "bob", text="...")
    spoil(data, "train", "cy", duration=9.0)
    run, _ = start(micro, data, begins=False)
    assert run.layout.test is not None


def test_the_file_of_a_file_uri_is_asked_for(tmp_path):
    (tmp_path / "is there.wav").touch()
    there, gone = f"file://{tmp_path}/is%20there.wav", f"file://localhost{tmp_path}/gone.wav"
    assert missing_files([there, gone]) == [gone]


def test_remote_files_that_are_not_answered_for_in_time_count_as_there(tmp_path, monkeypatch):
    (tmp_path / "there.wav").touch()
    paths = ["gs://slow/a.wav", str(tmp_path / "gone.wav"), str(tmp_path / "there.wav"), "gs://slow/b.wav"]
    monkeypatch.setattr(epath, "Path", lambda path: time.sleep(2))
    began = time.monotonic()
    assert missing_files(paths, remote_seconds=0.2) == [str(tmp_path / "gone.wav")]
    assert time.monotonic() - began < 1.5
