"""What bad input gets: bad data is counted, named and left out; a bad configuration is one line at the start."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reference import micro as world

from hra_jax import evaluate
from hra_jax.errors import UserError


@pytest.fixture
def data(micro, tmp_path) -> Path:
    """A copy of the data, to be spoilt."""
    return Path(shutil.copytree(micro.data, tmp_path / "data"))


def refused(config, workdir: Path) -> str:
    """The one line with which a run ends before its first step."""
    with pytest.raises(UserError) as caught:
        world.train(config, workdir, on_step=lambda step: pytest.fail("a step was done"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def report_of(workdir: Path) -> dict[str, dict[str, str]]:
    """{kind: {name: detail}} of W/data_report.json, whose counts must agree."""
    content = json.loads((workdir / "data_report.json").read_text())
    assert content["counts"] == {kind: len(rows) for kind, rows in content["utterances"].items()}
    return {kind: {row["name"]: row["detail"] for row in rows} for kind, rows in content["utterances"].items()}


# --- Data -------------------------------------------------------------------------------------------------------------


def row(name: str, *, seconds: float = 0.36, text: str = "abc", **fields) -> dict:
    return {"audio_filepath": f"audio/{name}", "duration": seconds, "text": text, "speaker": "ann", **fields}


def good(path: Path, seconds: float = 0.36) -> None:
    soundfile.write(path, world.tones("a" * round(seconds / 0.12)), world.RATE)


def broken_line(folder: Path) -> str:
    return '{"audio_filepath": "audio/x.wav", '


def line_without_text(folder: Path) -> dict:
    return {"audio_filepath": "audio/x.wav", "duration": 1.0, "speaker": "ann"}


def duration_that_is_no_number(folder: Path) -> dict:
    return row("x.wav", seconds="long")


def line_without_the_task(folder: Path) -> dict:
    good(folder / "nobody.wav")
    return {key: value for key, value in row("nobody.wav").items() if key != "speaker"}


def missing_file(folder: Path) -> dict:
    return row("missing.wav")


def empty_file(folder: Path) -> dict:
    (folder / "empty.wav").touch()
    return row("empty.wav")


def no_samples(folder: Path) -> dict:
    soundfile.write(folder / "silent.wav", np.zeros(0, np.float32), world.RATE)
    return row("silent.wav")


def text_file(folder: Path) -> dict:
    (folder / "text.flac").write_text("this is not audio " * 100)
    return row("text.flac")


def truncated_flac(folder: Path) -> dict:
    good(folder / "cut.flac")
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:2000])
    return row("cut.flac")


def truncated_wav(folder: Path) -> dict:
    good(folder / "cut.wav")
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:2000])
    return row("cut.wav")


def nan_samples(folder: Path) -> dict:
    samples = world.tones("abc")
    samples[100] = np.nan
    soundfile.write(folder / "nan.wav", samples, world.RATE, subtype="FLOAT")
    return row("nan.wav")


def too_short_for_its_text(folder: Path) -> dict:
    good(folder / "short.wav", 0.12)
    return row("short.wav", seconds=0.12, text="aabb aa")  # 6 frames of 20 ms; 7 letters and 3 repeats need 10


def shorter_than_the_manifest_says(folder: Path) -> dict:
    good(folder / "shorter.wav", 0.12)
    return row("shorter.wav", seconds=0.16, text="abcdef a")  # within the tolerance, but 6 frames for 8 letters


def longer_than_the_limit(folder: Path) -> dict:
    good(folder / "long.wav", 1.2)
    return row("long.wav", seconds=1.2)


def longer_than_the_manifest_says(folder: Path) -> dict:
    good(folder / "longer.wav", 1.2)
    return row("longer.wav", seconds=0.36)  # only what the manifest names is read: nothing is wrong


def letters_outside_the_vocabulary(folder: Path) -> dict:
    good(folder / "zebra.wav")
    return row("zebra.wav", text="zeb")


def nothing_in_the_vocabulary(folder: Path) -> dict:
    good(folder / "zzz.wav")
    return row("zzz.wav", text="zzz")


def brackets(folder: Path) -> str:
    return "[" * 3000


def address_of_the_web(folder: Path) -> dict:
    return row("x.wav", audio_filepath="http://example.org/x.wav")


def address_of_a_missing_file(folder: Path) -> dict:
    return row("x.wav", audio_filepath=f"file://{folder}/gone.wav")


def address_of_a_file(folder: Path) -> dict:
    good(folder / "by address.wav")
    return row("x.wav", audio_filepath=f"file://{folder}/by%20address.wav")  # nothing is wrong


def raw_samples(folder: Path) -> dict:
    (folder / "x.raw").write_bytes(bytes(2000))
    return row("x.raw")


def opposite_channels(folder: Path) -> dict:
    samples = world.tones("abc")
    soundfile.write(folder / "opposite.wav", np.stack([samples, -samples], axis=1), world.RATE)
    return row("opposite.wav")


def more_text_than_speech(folder: Path) -> dict:
    return row("x.wav", text="'" * 16_000)


# What is wrong, its kind, and words of what is said of it.
BAD = [
    (broken_line, "bad_json", ""),
    (line_without_text, "missing_field", "there is no text"),
    (duration_that_is_no_number, "missing_field", "duration is 'long'"),
    (line_without_the_task, "missing_field", "there is no tag 'speaker'"),
    (missing_file, "missing_file", "missing.wav"),
    (empty_file, "empty_audio", "no bytes"),
    (no_samples, "empty_audio", "no samples"),
    (text_file, "undecodable_audio", ""),
    (truncated_flac, "undecodable_audio", ""),
    (truncated_wav, "undecodable_audio", "truncated"),
    (nan_samples, "nan_samples", "1 samples are NaN or infinite"),
    (too_short_for_its_text, "too_short", "6 frames of 0.12 s; its labels need 10"),
    (shorter_than_the_manifest_says, "too_short", "6 frames of audio; its labels need 8"),
    (longer_than_the_limit, "too_long", "1.2 s; the limit is 1 s"),
    (brackets, "bad_json", "inside each other"),
    (address_of_the_web, "unreachable_audio", "http:// is not read"),
    (address_of_a_missing_file, "missing_file", "gone.wav"),
    (raw_samples, "undecodable_audio", "raw samples"),
    (opposite_channels, "silent_audio", "opposite phase"),
    (more_text_than_speech, "too_short", "cannot hold 16,000 characters"),
    (letters_outside_the_vocabulary, "unknown_text", "dropped 'z'"),
    (nothing_in_the_vocabulary, "unknown_text", "nothing is left of 'zzz'"),
]


@pytest.fixture(scope="module")
def spoilt(micro, tmp_path_factory):
    """A finished run on 12 good utterances and one of each kind of bad ones: its data, and what became of it."""
    folder = Path(shutil.copytree(micro.data, tmp_path_factory.mktemp("spoilt") / "data"))
    rows = [make(folder / "audio") for make, _, _ in BAD]
    rows += [make(folder / "audio") for make in (longer_than_the_manifest_says, address_of_a_file)]
    good_rows = world.read_manifest(folder / "train.jsonl")
    world.write_manifest(folder / "train.jsonl", [*rows, *good_rows])
    # 12 good ones, and those of which only decoding tells: 4 a step, so that 8 steps see every one.
    config = micro.config(steps=8, data__dir=str(folder), eval__suite=micro.suite("test"))
    return folder, world.train(config, folder.parent / "W")


def test_each_kind_of_bad_data_is_counted_and_named_and_training_goes_on(spoilt):
    folder, done = spoilt
    assert done.status == 0 and (done.workdir / "adapter").exists()
    losses = world.losses(done.workdir)
    assert len(losses) == 8 and np.isfinite(losses).all()
    found = report_of(done.workdir)
    expected: dict[str, int] = {}
    for line, (make, kind, detail) in enumerate(BAD, start=1):
        expected[kind] = expected.get(kind, 0) + 1
        made = make(folder / "audio")
        names = [f"{folder}/train.jsonl:{line}"]
        if isinstance(made, dict):
            names.append(f"micro: {made['audio_filepath']}")
        details = [found[kind][name] for name in names if name in found[kind]]
        assert len(details) == 1 and detail in details[0], (make.__name__, found[kind])
    assert {kind: len(rows) for kind, rows in found.items()} == expected


def test_bad_rows_do_not_count_in_the_loss(spoilt):
    _, done = spoilt
    lines = [json.loads(line) for line in (done.workdir / "metrics.jsonl").read_text().splitlines()]
    counted = [line["train/utterances"] for line in lines]
    # The 10 bad files of an epoch of 25 rows were met at least once in 32 places.
    assert all(0 < count <= 4 for count in counted) and sum(counted) <= 8 * 4 - 10


def test_bad_data_is_summarised_at_the_end(spoilt):
    _, done = spoilt
    (line,) = [line for line in done.printed.splitlines() if line.startswith("data: ")]
    for kind in {kind for _, kind, _ in BAD}:
        assert f" {kind} (such as " in line


def test_evaluation_and_a_second_start_keep_what_training_has_named(spoilt, micro, tmp_path, monkeypatch):
    _, done = spoilt
    workdir = Path(shutil.copytree(done.workdir, tmp_path / "W"))
    before = report_of(workdir)
    world.use_devices(monkeypatch, 1)
    evaluate.evaluate(workdir, micro.suite("test"))
    assert report_of(workdir) == before
    assert world.train(done.config, workdir).status == 0
    assert report_of(workdir) == before


@pytest.mark.parametrize(("make", "kind", "detail"), BAD, ids=[make.__name__ for make, *_ in BAD])
def test_strict_makes_any_of_it_an_error(micro, data, tmp_path, make, kind, detail):
    rows = world.read_manifest(data / "train.jsonl")[:3]
    world.write_manifest(data / "train.jsonl", [*rows, make(data / "audio")])
    line = refused(micro.config(data__dir=str(data), data__strict=True), tmp_path / "W")
    assert line.startswith(f"{kind}: ") and detail in line and "data.strict is on" in line
    assert list(report_of(tmp_path / "W")) == [kind]


def test_only_bad_lines_end_the_run_and_are_named(micro, data, tmp_path):
    world.write_manifest(data / "train.jsonl", [broken_line(data), longer_than_the_limit(data / "audio")])
    line = refused(micro.config(data__dir=str(data)), tmp_path / "W")
    assert "no usable utterance" in line and "1 bad_json" in line and "1 too_long" in line
    assert sorted(report_of(tmp_path / "W")) == ["bad_json", "too_long"]


def test_a_source_without_a_usable_line_is_named_where_tasks_take_turns(micro, data, tmp_path):
    world.write_manifest(data / "empty.jsonl", [broken_line(data)])
    sources = tuple((name, f"{{dir}}/{name}.jsonl", "proportional") for name in ("train", "empty"))
    config = micro.config(data__dir=str(data), data__sources=sources, data__draw="tasks")
    assert refused(config, tmp_path / "W") == "source 'empty' has no usable utterance"


def test_only_bad_audio_ends_the_run_and_is_named(micro, data, tmp_path):
    shutil.rmtree(data / "audio")
    with pytest.raises(UserError) as caught:
        world.train(micro.config(data__dir=str(data), steps=50), tmp_path / "W")
    line = str(caught.value)
    assert "no usable audio" in line and "12 missing_file" in line and "\n" not in line
    assert len(report_of(tmp_path / "W")["missing_file"]) == 12


# --- Configurations and paths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "adaptor"}, "config.method is 'adaptor'; allowed: 'adapter', 'full', 'pretrain' (did you mean"),
        ({"adapter__name": "lora2"}, "config.adapter.name is 'lora2'; allowed: "),
        ({"data__tasks": ("anne",)}, "task 'anne' is not a value of the tag 'speaker'"),
        ({"data__task_tag": "dialect"}, "no usable utterance: all 12 were left out (12 missing_field"),
        ({"data__synthetic": "hrad"}, "config.data.synthetic is 'hrad'; allowed: "),
        ({"data__sources": (("m", "{dir}/nothing.jsonl", 1.0),)}, "nothing.jsonl"),
        ({"data__sources": ()}, "data.sources = (): allowed is at least one"),
        ({"data__dir": ""}, "needs data.dir, which is ''"),
        ({"data__dir": "/nowhere/at/all"}, "no manifest at /nowhere/at/all/train.jsonl"),
        ({"backbone": "nowhere/at/all"}, "backbone = 'nowhere/at/all': must be builtin:NAME or a folder that holds"),
        ({"backbone": "builtin:huge"}, "backbone = 'builtin:huge': the built-in ones are"),
        ({"method": "pretrain", "pretrain__size": "huge"}, "config.pretrain.size is 'huge'; allowed: "),
        ({"eval__suite": "tset"}, "config.eval.suite is 'tset': unknown suite 'tset'"),
        ({"export__step": "best"}, "config.export.step is 'best'"),
    ],
)
def test_an_unknown_name_or_path_is_one_line_before_anything_is_compiled(micro, tmp_path, changes, told):
    assert told in refused(micro.config(**changes), tmp_path / "W")
    assert not (tmp_path / "W" / "checkpoints").exists()


def test_an_unknown_configuration_key_is_one_line(micro, tmp_path):
    config = micro.config().unlock()
    config.hra.widht = 3
    assert "unknown config key 'hra.widht'; did you mean 'hra.width'" in refused(config, tmp_path / "W")
    assert not (tmp_path / "W").exists()


@pytest.mark.parametrize("inside", [".", "deep/W"])
def test_a_work_directory_that_cannot_be_written_is_one_line(micro, tmp_path, inside):
    (tmp_path / "file").write_text("in the way")
    line = refused(micro.config(), tmp_path / "file" / inside)
    assert line.startswith(f"workdir = '{tmp_path / 'file'}") and "cannot be written (" in line
