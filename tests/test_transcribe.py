"""Audio files to text."""

import json
import subprocess
import sys

import pytest
import soundfile
from reference import micro as world

import hra_jax
from hra_jax.data.audio import decode_file
from hra_jax.errors import UserError
from hra_jax.transcribe import transcribe

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
