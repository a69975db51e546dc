"""Audio files to text."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from absl import flags
from etils import epath
from reference import micro as world

import hra_jax
from hra_jax import transcribe as command_of
from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.data.audio import decode_file
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.tasks import commands, library
from hra_jax.text import ngram
from hra_jax.text.vocabularies import vocabulary_from_json
from hra_jax.transcribe import choose_task, transcribe

pytestmark = pytest.mark.optimised  # runs here are compared with commands, which are optimised


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """More files than are recognised at a time: 17 good ones, and an empty, a missing and a text file among them."""
    folder = tmp_path_factory.mktemp("recordings")
    found = []
    for number in range(17):
        path = folder / f"{number}.wav"
        rate = (8000, 16000)[number % 2]
        soundfile.write(path, world.tones("abcdef"[number % 5 :], pitch=1 + number / 20, rate=rate), rate)
        found.append(str(path))
    (folder / "empty.wav").touch()
    (folder / "words.flac").write_text("not audio")
    bad = [str(folder / name) for name in ("empty.wav", "missing.wav", "words.flac")]
    return [found[0], bad[0], *found[1:9], bad[1], *found[9:], bad[2]], bad


@pytest.fixture(scope="module")
def expected(files, micro, trained) -> dict[str, str]:
    """What the model says of each good file alone."""
    model = hra_jax.load_adapter(trained.workdir / "adapter", hra_jax.load_backbone(micro.backbone))
    good = [file for file in files[0] if file not in files[1]]
    return {
        file: model.transcribe([decode_file(file, world.RATE)], sample_rate=world.RATE, tasks=["bob"])[0]
        for file in good
    }


def test_every_file_gets_its_own_text_or_its_own_error_in_order(files, expected, micro, trained):
    adapter = str(trained.workdir / "adapter")
    rows = list(transcribe(files[0], adapter=adapter, backbone=micro.backbone, task="bob"))
    assert [file for file, *_ in rows] == files[0]
    assert {file: text for file, text, error in rows if error is None} == expected
    assert len(set(expected.values())) > 1
    kinds = {file: error.split(":")[0] for file, _, error in rows if error is not None}
    assert kinds == dict(zip(files[1], ("empty_audio", "missing_file", "undecodable_audio"), strict=True))
    assert all(text is None for file, text, _ in rows if file in files[1])


def test_a_recording_whose_samples_overflow_costs_no_other_its_text(files, expected, micro, trained, tmp_path):
    loud, good = str(tmp_path / "loud.wav"), [file for file in files[0] if file not in files[1]][:2]
    soundfile.write(loud, 3e38 * world.tones("fad cab"), world.RATE, subtype="FLOAT")
    adapter = str(trained.workdir / "adapter")
    rows = list(transcribe([good[0], loud, good[1]], adapter=adapter, backbone=micro.backbone, task="bob"))
    assert [rows[0], rows[2]] == [(file, expected[file], None) for file in good]
    assert rows[1][1] is None and "task 'bob': the log-probabilities are not finite" in rows[1][2]
    with pytest.raises(UserError, match="task 'bob': the log-probabilities are not finite"):
        list(transcribe([loud], adapter=adapter, backbone=micro.backbone, task="bob"))


def test_without_an_adapter_the_backbone_speaks(files, micro):
    (row,) = transcribe(files[0][:1], adapter=None, backbone=micro.backbone, task="__base__")
    audio = decode_file(files[0][0], world.RATE)
    assert row[1] == hra_jax.load_backbone(micro.backbone).transcribe([audio], sample_rate=world.RATE)[0]


def test_only_unreadable_files_are_only_errors(files, micro, trained):
    adapter = str(trained.workdir / "adapter")
    rows = list(transcribe(files[1], adapter=adapter, backbone=micro.backbone, task="ann"))
    assert [text for _, text, _ in rows] == [None] * 3 and all(error for *_, error in rows)


def test_a_wrong_task_is_told_before_any_file_is_read(micro, trained):
    adapter = str(trained.workdir / "adapter")
    with pytest.raises(UserError, match="unknown task 'bop'; did you mean 'bob'"):
        next(transcribe(["nothing.wav"], adapter=adapter, backbone=micro.backbone, task="bop"))
    with pytest.raises(UserError, match="task = 'bob' needs --adapter"):
        next(transcribe(["nothing.wav"], adapter=None, backbone=micro.backbone, task="bob"))


def test_the_mean_of_all_tasks_is_a_task(files, micro, trained):
    adapter = str(trained.workdir / "adapter")
    ((_, text, error),) = transcribe(files[0][:1], adapter=adapter, backbone=micro.backbone, task="__mean__")
    assert text is not None and error is None
    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    rows = [model.row(name) for name in model.tasks]
    mean = model.mean()
    for expected, leaf in zip(
        jax.tree.leaves(jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *rows)),
        jax.tree.leaves(mean.row("__mean__")),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)
    assert mean.tasks == ("__mean__",)


def test_without_a_task_the_only_one_is_taken_and_said_and_of_several_one_is_asked_for(trained, tmp_path):
    adapter = str(trained.workdir / "adapter")
    told = "--task is missing, and .* has 3 tasks; allowed: ann, bob, cy, __auto__ .*, __mean__ .* or __base__"
    with pytest.raises(UserError, match=told):
        choose_task(adapter, None)
    with pytest.raises(UserError, match="unknown task 'z'; allowed: ann, bob, cy, __base__, __auto__, __mean__"):
        choose_task(adapter, "z")
    assert choose_task(adapter, "bob") == ("bob", "") and choose_task(None, None) == ("__base__", "")
    assert choose_task(adapter, "__mean__") == ("__mean__", "")
    shutil.copytree(adapter, tmp_path / "one")
    for name in ("ann", "cy"):
        commands.remove(str(tmp_path / "one"), name)
    assert choose_task(str(tmp_path / "one"), None) == ("bob", f"task 'bob', the only one of {tmp_path / 'one'}")


def test_a_task_that_had_no_step_is_told_by_transcribe_and_by_tasks_list(trained, tmp_path, capsys):
    exported, adapter = read_adapter(trained.workdir / "adapter"), str(tmp_path / "adapter")
    entries = [entry | ({"step": 0} if entry["name"] == "bob" else {}) for entry in exported.tasks_json]
    library.write(epath.Path(adapter), dataclasses.replace(exported, tasks_json=entries))
    assert choose_task(adapter, "bob") == ("bob", "task 'bob' had no training step")
    assert choose_task(adapter, "ann") == ("ann", "")
    commands.list_tasks(adapter)
    assert "without a training step: 'bob'" in capsys.readouterr().out


@pytest.fixture
def flag_values(monkeypatch) -> Callable[..., None]:
    """Gives the flags of the command, which then runs in this process, values beside their defaults."""
    monkeypatch.setattr(command_of, "setup_jax", lambda: None)  # this process has its own compile cache

    def give(decode=None, **values) -> None:
        given = flags.FlagValues()
        monkeypatch.setattr(command_of, "FLAGS", given)
        kinds = [name for name in dir(flags) if name.startswith("DEFINE_")]
        with monkeypatch.context() as patch:
            defining = {kind: functools.partial(getattr(flags, kind), flag_values=given) for kind in kinds}
            patch.setattr(command_of, "flags", types.SimpleNamespace(**defining))
            command_of.define_flags()
        values |= {f"decode.{key}": value for key, value in (decode or {}).items()}
        given(["transcribe", *(f"--{name}={value}" for name, value in values.items() if value is not None)])

    return give


def test_what_was_not_asked_for_is_said_on_stderr_and_the_text_alone_on_stdout(
    files, micro, trained, tmp_path, capsys, flag_values
):
    """The command in this process: what it says beside the text of a file."""
    one = str(tmp_path / "one")
    shutil.copytree(trained.workdir / "adapter", one)
    for name in ("ann", "cy"):
        commands.remove(one, name)
    exported = read_adapter(one)
    library.write(epath.Path(one), dataclasses.replace(exported, tasks_json=[exported.tasks_json[0] | {"step": 0}]))
    capsys.readouterr()
    never = "task 'bob' had no training step\n"
    cases = [(None, f"task 'bob', the only one of {one}; {never}"), ("bob", never), ("__base__", "")]
    printed = []
    for task, notice in cases:
        flag_values(adapter=one, backbone=micro.backbone, task=task)
        assert command_of.main(["transcribe", files[0][0]]) == 0
        out, err = capsys.readouterr()
        assert err == notice
        printed.append(out)
    assert printed[0] == printed[1] and all(line.startswith(f"{files[0][0]}\t") for line in printed)
    assert [out.count("\n") for out in printed] == [1, 1, 1]


@pytest.fixture
def command(micro, trained, command_env):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        folders = ["--adapter", str(trained.workdir / "adapter"), "--backbone", micro.backbone, "--task", "bob"]
        line = [sys.executable, "-m", "hra_jax.transcribe", *folders, *arguments]
        return subprocess.run(line, env=command_env, capture_output=True, text=True, check=False)

    return run


def test_the_command_writes_json_lines_reports_what_it_cannot_read_and_ends_with_status_2(command, files, expected):
    chosen = files[0][:3]
    done = command("--json", *chosen)
    assert done.returncode == 2, done.stderr
    first, bad, second = map(json.loads, done.stdout.splitlines())
    assert first == {"audio_filepath": chosen[0], "text": expected[chosen[0]], "task": "bob"}
    assert bad == {"audio_filepath": chosen[1], "error": "empty_audio: the file has no bytes"}
    assert second["text"] == expected[chosen[2]]
    assert done.stderr == f"error: {chosen[1]}: empty_audio: the file has no bytes\n"


def test_the_command_writes_file_and_text_and_ends_with_status_0(command, files, expected):
    chosen = [files[0][0], files[0][2]]
    done = command(*chosen)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{file}\t{expected[file]}" for file in chosen]
    assert done.stderr == ""


def test_a_task_is_chosen_without_reading_the_weights(trained, tmp_path):
    shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    assert choose_task(str(tmp_path / "adapter"), "bob") == ("bob", "")


# --- Manifests and outputs --------------------------------------------------------------------------------------------


@pytest.fixture
def asked(micro, trained, tmp_path) -> dict:
    """A manifest of the test recordings without texts, each with its own task, and the flags that recognise it."""
    rows = [
        {"audio_filepath": str(micro.data / row["audio_filepath"]), "duration": row["duration"], "who": row["speaker"]}
        for row in world.read_manifest(micro.data / "test.jsonl")
    ]
    world.write_manifest(tmp_path / "m.jsonl", rows)
    flags = dict(adapter=str(trained.workdir / "adapter"), backbone=micro.backbone, task_tag="who")
    return flags | dict(manifest=str(tmp_path / "m.jsonl"), output=str(tmp_path / "texts.jsonl"))


def test_a_manifest_mixes_tasks_and_every_line_has_the_text_of_its_own(asked, micro, trained, flag_values, capsys):
    rows = world.read_manifest(Path(asked["manifest"]))
    flag_values(**asked)
    assert command_of.main(["transcribe"]) == 0
    lines = [json.loads(line) for line in Path(asked["output"]).read_text().splitlines()]
    assert [line["audio_filepath"] for line in lines] == [row["audio_filepath"] for row in rows]
    assert [line["task"] for line in lines] == [row["who"] for row in rows]
    model = hra_jax.load_adapter(trained.workdir / "adapter", hra_jax.load_backbone(micro.backbone))
    for line in lines:
        sound = decode_file(line["audio_filepath"], world.RATE)
        assert line["text"] == model.transcribe([sound], sample_rate=world.RATE, tasks=[line["task"]])[0]
    printed = capsys.readouterr().out
    assert "6 of 6 recognised" in printed and "x real time" in printed and all(name in printed for name in model.tasks)


def test_the_same_command_again_adds_what_is_missing_and_loads_no_model_where_nothing_is(
    asked, flag_values, monkeypatch, capsys
):
    flag_values(**asked)
    assert command_of.main(["transcribe"]) == 0
    output = Path(asked["output"])
    whole = output.read_bytes()
    output.write_bytes(whole[: 3 * len(whole) // 4])
    there = output.read_bytes().count(b"\n")
    capsys.readouterr()
    assert command_of.main(["transcribe"]) == 0
    assert output.read_bytes() == whole and f"; {there} were there" in capsys.readouterr().out and 2 < there < 6
    monkeypatch.setattr(command_of.Recogniser, "load", None)
    assert command_of.main(["transcribe"]) == 0
    assert output.read_bytes() == whole and "nothing is missing: 6 were there" in capsys.readouterr().out
    calibrated = str(output.with_name("calibrated"))
    exported = read_adapter(asked["adapter"])
    lag = {"temperature": 1.5, "lag_seconds": 0.02}
    entries = [{**entry, task_records.CALIBRATION: lag} for entry in exported.tasks_json]
    library.write(epath.Path(calibrated), dataclasses.replace(exported, tasks_json=entries))
    changes = ({"task_tag": "text"}, {"chunk_seconds": 1.0}, {"task": "ann"}, {"adapter": calibrated})
    for change in changes:
        flag_values(**{**asked, **change})
        with pytest.raises(
            UserError, match=f"was begun with {next(iter(change))} = |no line has a task|--task is miss"
        ):
            command_of.main(["transcribe"])
    assert output.read_bytes() == whole


def test_unknown_tasks_of_a_manifest_are_counted_and_named_and_the_rest_goes_on(asked, flag_values, capsys):
    rows = world.read_manifest(Path(asked["manifest"]))
    changed = [row | ({"who": "bop"} if number < 2 else {}) for number, row in enumerate(rows)]
    world.write_manifest(Path(asked["manifest"]), changed)
    flag_values(**asked)
    assert command_of.main(["transcribe"]) == 2
    told = capsys.readouterr()
    assert told.err.count("unknown_task: unknown task 'bop'; did you mean 'bob'?") == 2
    assert "not recognised: 2 unknown_task" in told.out and "4 of 6 recognised" in told.out
    world.write_manifest(Path(asked["manifest"]), [row | {"who": "bop"} for row in rows])
    with pytest.raises(UserError, match=r"no line has a task that there is \(who = 'bop'\): unknown task 'bop'"):
        command_of.main(["transcribe"])


def test_a_manifest_of_lines_that_cannot_be_used_is_errors_alone(asked, flag_values, capsys):
    Path(asked["manifest"]).write_text('{"audio_filepath": "a.wav"}\n{\n')
    flag_values(**{**asked, "task": "ann"})
    assert command_of.main(["transcribe"]) == 2
    kinds = [json.loads(line)["error"].partition(":")[0] for line in Path(asked["output"]).read_text().splitlines()]
    assert kinds == ["missing_field", "bad_json"] and "0 of 2 recognised" in capsys.readouterr().out


def test_a_line_whose_phrases_cannot_be_written_is_an_error_of_its_own(asked):
    rows = world.read_manifest(Path(asked["manifest"]))
    rows[0]["phrases"], rows[1]["phrases"] = ["xyz"], ["fad"]
    world.write_manifest(Path(asked["manifest"]), rows[:2])
    recogniser = command_of.Recogniser(asked["adapter"], asked["backbone"], ["ann", "bob", "cy", "__mean__"])
    made = command_of.requests.of_manifest(
        asked["manifest"], task=None, known=world.SPEAKERS, unknown=UserError, task_tag="who"
    )
    first, second = map(recogniser.checked, made.make())
    assert first.error.startswith("unknown_phrase: ") and "'xyz' cannot be written" in first.error
    assert not second.error
    for task in ("__mean__", "__auto__"):
        assert recogniser.checked(second._replace(task=task, phrases=first.phrases)).error == first.error
        assert not recogniser.checked(second._replace(task=task)).error


def test_lines_without_a_task_are_asked_for_one(asked, flag_values):
    flag_values(**{**asked, "task_tag": "task"})
    with pytest.raises(UserError, match="--task is missing, and .* has 3 tasks"):
        command_of.main(["transcribe"])


def test_flags_that_do_not_fit_each_other_are_refused_in_one_line(asked, flag_values, tmp_path):
    (tmp_path / "S").mkdir()
    own = shutil.copy(asked["manifest"], str(tmp_path / "S" / "parts.jsonl"))
    cases = [
        (dict(output=str(tmp_path / "S"), format="srt", manifest=own), "would be written over the manifest .*S/parts"),
        (dict(json=True), "--json is short lines on stdout"),
        (dict(output=None, format="srt"), "--format=srt needs --output: a folder"),
        (dict(output=str(tmp_path)), "is a folder; allowed: the path of a file"),
        (dict(output=str(tmp_path / "x/") + "/"), "is a folder; allowed: the path of a file"),
        (
            dict(output=asked["manifest"], format="srt"),
            r"is a file; allowed: a folder, or for one recording a \.srt file",
        ),
        (dict(session="who"), "--session='who' would do nothing: no recording is of __auto__"),
        (dict(adapter=None), "no line has a task that there is .*: task = 'ann' needs --adapter"),
        (dict(chunk_seconds=-1.0), "chunk_seconds = -1.0: allowed are numbers of seconds above 0"),
        (dict(format="text", decode={"n_best": 2}), "decode.n_best = 2: text has no place for alternatives"),
        (dict(json=True, output=None, decode={"n_best": 2}), "decode.n_best = 2: --json has no place"),
    ]
    for change, told in cases:
        flag_values(**{**asked, **change})
        with pytest.raises(UserError, match=told):
            command_of.main(["transcribe"])
    flag_values(adapter=asked["adapter"], backbone=asked["backbone"])
    with pytest.raises(UserError, match="no audio file given"):
        command_of.main(["transcribe"])
    for name, value in (("task_tag", "who"), ("data_dir", str(tmp_path)), ("modules", "json")):
        flag_values(adapter=asked["adapter"], backbone=asked["backbone"], task="bob", **{name: value})
        with pytest.raises(UserError, match=f"--{name} needs --manifest: files alone have no"):
            command_of.main(["transcribe", "a.wav"])


def test_whatever_of_an_adapter_texts_words_or_voices_depend_on_is_in_its_digest(trained, tmp_path):
    exported = read_adapter(trained.workdir / "adapter")
    first, *others = exported.tasks_json
    sound = {task_records.CENTROID: {"ann": np.ones(4, np.float32)}}
    changed = {
        "same": exported,
        "calibrated": dataclasses.replace(
            exported,
            tasks_json=[{**first, task_records.CALIBRATION: {"temperature": 1.5, "lag_seconds": 0.02}}, *others],
        ),
        "centroids": dataclasses.replace(exported, records={**exported.records, **sound}),
        "fewer": dataclasses.replace(
            exported, tasks_json=[first], tasks={first["name"]: exported.tasks[first["name"]]}
        ),
    }
    for name, one in changed.items():
        library.write(epath.Path(tmp_path / name), one)
    digests = {name: command_of._adapter_digest(str(tmp_path / name)) for name in changed}
    assert digests["same"] == command_of._adapter_digest(str(trained.workdir / "adapter"))
    assert len({*digests.values()}) == len(changed)


@pytest.mark.slow(minutes=0.2)
def test_the_task_of_a_recording_or_of_a_session_is_found_where_nobody_says_it(
    asked, micro, flag_values, tmp_path, capsys
):
    manifest, output = str(micro.data / "train.jsonl"), str(tmp_path / "heard")
    commands.add_centroids(asked["adapter"], manifest=manifest, backbone=micro.backbone, output=output)
    asked["adapter"] = output
    rows = world.read_manifest(Path(asked["manifest"]))
    model = hra_jax.load_adapter(output, hra_jax.load_backbone(micro.backbone))
    sounds = [decode_file(row["audio_filepath"], world.RATE) for row in rows]
    for sessions in (None, [row["who"] for row in rows]):
        flag_values(**{**asked, "task_tag": "task", "task": "__auto__", "session": "who" if sessions else ""})
        Path(asked["output"]).unlink(missing_ok=True)
        assert command_of.main(["transcribe"]) == 0
        lines = [json.loads(line) for line in Path(asked["output"]).read_text().splitlines()]
        expected = model.recognise(sounds, sample_rate=world.RATE, tasks=["__auto__"] * len(rows), sessions=sessions)
        assert [(line["task"], line["text"]) for line in lines] == [(one.task, one.text) for one in expected]
        assert {line.get("session") for line in lines} == set(sessions or [None])
    # What was found for a session holds for the rest of it, after an interruption too.
    other = next(name for name in world.SPEAKERS if name != lines[0]["task"])
    kept = json.dumps({**lines[0], "task": other, "asked": "__auto__"}) + "\n"
    Path(asked["output"]).write_text(kept)
    assert command_of.main(["transcribe"]) == 0
    again = [json.loads(line) for line in Path(asked["output"]).read_text().splitlines()]
    assert [line["task"] for line in again if line["session"] == lines[0]["session"]] == [other, other]
    with pytest.raises(UserError, match="files have no fields; allowed: __all__, or a manifest"):
        command_of.main(["transcribe", rows[0]["audio_filepath"]])


def test_without_centroids_the_command_that_adds_them_is_named_before_anything_is_loaded(asked, flag_values, tmp_path):
    exported = read_adapter(asked["adapter"])
    library.write(epath.Path(tmp_path / "bare"), dataclasses.replace(exported, records={}))
    flag_values(**{**asked, "adapter": str(tmp_path / "bare"), "task_tag": "task", "task": "__auto__"})
    with pytest.raises(UserError, match="tasks centroids"):
        command_of.main(["transcribe"])


@pytest.fixture
def lm(micro, tmp_path) -> str:
    """A language model of the texts of the training data."""
    vocabulary = vocabulary_from_json(backbone_folder.load(micro.backbone).vocabulary)
    model = ngram.train([vocabulary.encode(text) for text in world.TEXTS["train"]], vocabulary, order=3, name="texts")
    ngram.write(tmp_path / "texts.lm", model)
    return str(tmp_path / "texts.lm")


@pytest.mark.slow(minutes=0.3)
def test_flags_and_lines_of_a_manifest_say_how_each_utterance_is_decoded(asked, lm, trained, micro, flag_values):
    rows = world.read_manifest(Path(asked["manifest"]))
    rows[1]["phrases"] = ["fad", "bed"]
    world.write_manifest(Path(asked["manifest"]), rows)
    pairs = f"(('ann', {lm!r}), ('bob', {lm!r}), ('cy', ''))"
    flag_values(**asked, decode={"lm": pairs, "lm_weight": 0.5, "beam": 4, "n_best": 2})
    assert command_of.main(["transcribe"]) == 0
    lines = [json.loads(line) for line in Path(asked["output"]).read_text().splitlines()]
    model = hra_jax.load_adapter(asked["adapter"], hra_jax.load_backbone(micro.backbone))
    decode = {"lm": {"ann": lm, "bob": lm, "cy": ""}, "lm_weight": 0.5, "beam": 4, "n_best": 2}
    for line, row in zip(lines, rows, strict=True):
        (one,) = model.recognise(
            [row["audio_filepath"]], tasks=[row["who"]], decode=decode, phrases=[row.get("phrases", ())], words=True
        )
        assert [other["text"] for other in line["alternatives"]] == [other.text for other in one.alternatives]
        assert len(one.alternatives) == 2 and line["alternatives"][0]["text"] == line["text"]
        assert line["text"] == one.text and [word["word"] for word in line["words"]] == one.text.split()
        used = {
            "beam": 4,
            "lm": "texts" if row["who"] != "cy" else None,
            "phrases": len(row.get("phrases", ())) or None,
        }
        said = line["decoding"]
        assert used == {"beam": said["beam"], "lm": said.get("lm", {}).get("name"), "phrases": said.get("phrases")}
    for change, told in (
        (dict(lm_weight=0.6), "decode = "),
        (dict(n_best=3), "n_best = 2, not 3"),
        (dict(phrase_weight=9.0), "with_phrases = "),
    ):
        flag_values(**asked, decode={"lm": pairs, "lm_weight": 0.5, "beam": 4, "n_best": 2, **change})
        with pytest.raises(UserError, match=f"was begun with {told}"):
            command_of.main(["transcribe"])


def test_what_cannot_decode_is_refused_in_one_line_before_anything_is_loaded(asked, lm, flag_values, tmp_path):
    (tmp_path / "empty.txt").write_text("bad phrase\t1000\n")
    cases = [
        (dict(lm=str(tmp_path / "none.lm")), "decode.lm: .*none.lm is not a file"),
        (dict(lm=f"(('ann', {lm!r}),)"), "no language model for task 'bob', but for 'ann'"),
        (dict(lm=asked["manifest"]), "m.jsonl"),
        (dict(beam=-1), "decode.beam"),
        (dict(lm=lm, lm_weight=float("nan")), "decode.lm_weight"),
        (dict(lm_weight=0.5), "decode.lm_weight = 0.5 would do nothing"),
        (dict(lm=str(tuple((name, lm) for name in (*world.SPEAKERS, "dan")))), "decode.lm: unknown task 'dan'"),
        (dict(lm="train"), "decode.lm = 'train': there is no run here"),
        (dict(n_best=0), "decode.n_best"),
        (dict(phrases=str(tmp_path / "empty.txt")), "a weight of 1000.0; allowed: finite numbers from -100 to 100"),
        (
            dict(phrases=str(tmp_path / "none.txt")),
            "decode.phrases: .* cannot be read .*needed is a file with a phrase",
        ),
    ]
    for change, told in cases:
        flag_values(**asked, decode=change)
        with pytest.raises(UserError, match=told) as caught:
            command_of.main(["transcribe"])
        assert "\n" not in str(caught.value) and not Path(asked["output"]).exists()


def test_subtitles_of_a_manifest_have_the_words_of_all_parts_of_a_file_at_their_times(
    asked, micro, flag_values, tmp_path
):
    words = ["cab", "fed", "dab"]
    sound = np.concatenate([np.append(world.tones(word), np.zeros(world.RATE, np.float32)) for word in words])
    soundfile.write(tmp_path / "long.wav", sound, world.RATE)
    rows = [
        {"audio_filepath": "long.wav", "offset": number * 1.36, "duration": 0.36, "who": who}
        for number, who in ((2, "ann"), (0, "bob"), (1, "cy"))
    ]
    world.write_manifest(Path(asked["manifest"]), rows)
    flag_values(**{**asked, "output": str(tmp_path / "S"), "format": "vtt"})
    assert command_of.main(["transcribe"]) == 0
    assert sorted(path.name for path in (tmp_path / "S").iterdir()) == ["long.vtt", "parts.jsonl", "run.json"]
    flag_values(**{**asked, "output": str(tmp_path / "texts.jsonl")})
    assert command_of.main(["transcribe"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    for line, row in zip(lines, rows, strict=True):
        assert line.get("offset", 0.0) == row["offset"] and line["key"].startswith("long.wav@")
        assert all(row["offset"] - 0.1 <= word["start"] <= word["end"] <= row["offset"] + 0.5 for word in line["words"])
    text = (tmp_path / "S" / "long.vtt").read_text()
    told = [word["word"] for line in sorted(lines, key=lambda line: line.get("offset", 0.0)) for word in line["words"]]
    assert told and [word for line in text.splitlines()[1:] if "-->" not in line for word in line.split()] == told
