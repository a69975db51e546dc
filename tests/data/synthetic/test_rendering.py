"""Synthetic speech: rendered once, the same everywhere, and refused in one line where it cannot be."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from hra_jax.data import manifest
from hra_jax.data.report import DataReport
from hra_jax.data.synthetic import espeak, grammar, rendering, speakers, voice_worker
from hra_jax.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]


def _summary(folder):
    return json.loads((folder / "synthesis.json").read_text())


def _files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return rendering.render("tiny-test", tmp_path_factory.mktemp("one") / "set", processes=1, progress=False)


def _command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "hra_jax.data.synthesize", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_renderings_are_equal_whatever_the_number_of_processes(rendered, tmp_path):
    again = rendering.render("tiny-test", tmp_path / "set", processes=3, progress=False)
    assert _summary(again)["hash"] == _summary(rendered)["hash"]
    assert _files(again) == _files(rendered)
    assert any("whisper" in name for name in _files(again))


def test_the_order_of_utterances_and_the_state_of_the_process_change_nothing():
    """Whisper and breath are noise, and the library carries state: the case that needs the fork and the seed."""

    def speak(voice, variant):
        return espeak.in_fork(lambda: espeak.library().speak("seven", voice=voice, variant=variant, rate=150))

    voices = [("en-us", "whisper"), ("en-gb", "f3"), ("en", "croak"), ("fr", ""), ("en-us", "klatt3")]
    first = [speak(*voice) for voice in voices]
    second = [speak(*voice) for voice in reversed(voices)][::-1]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({samples.tobytes() for samples in first}) == len(voices)


def test_the_worker_imports_nothing_that_starts_threads():
    code = "import sys, hra_jax.data.synthetic.voice_worker; print({'jax', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_manifests_name_decodable_audio_of_the_stated_length(rendered):
    names = []
    for split, count in (("train", 12), ("validation", 6), ("test", 6)):
        utterances, report = manifest.check(rendered / f"{split}.jsonl", sample_rate=8000)
        assert (len(utterances), sum(report.counts().values())) == (count, 0)
        for utterance in utterances:
            info = soundfile.info(utterance.audio_filepath)
            assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
            assert utterance.duration == pytest.approx(info.frames / 8000)
            assert 0.1 < utterance.duration < 10
            assert utterance.tags["speaker"] in ("plain", "whisper")
            assert grammar.split_of(utterance.text) == split
        names += [utterance.key for utterance in utterances]
    assert len(set(names)) == 24


def test_a_finished_folder_is_check_pins_and_another_request_is_refused(rendered):
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*")}
    assert rendering.render("tiny-test", rendered, progress=False) == rendered
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*")} == before
    with pytest.raises(UserError, match=r"another rendering \(sample_rate 8000, not 16000\)"):
        rendering.render("tiny-test", rendered, sample_rate=16000, progress=False)
    with pytest.raises(UserError, match="set 'tiny-test', not 'hard'"):
        rendering.render("hard", rendered, progress=False)


def test_an_interrupted_rendering_starts_over_and_ends_the_same(rendered, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(rendered, folder)
    request = _summary(folder)["request"]
    (folder / "synthesis.json").unlink()
    (folder / "test.jsonl").unlink()
    (folder / "synthesis.partial.json").write_text(json.dumps({"request": request}))
    next(iter(sorted(folder.rglob("*.flac")))).write_bytes(b"half a fi")
    with pytest.raises(UserError, match="another rendering"):
        rendering.render("tiny-test", folder, scale=0.5, progress=False)
    rendering.render("tiny-test", folder, progress=False)
    assert _files(folder) == _files(rendered)


def test_a_rendering_that_was_killed_before_its_checksums_is_not_finished(rendered, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(rendered, folder)
    (folder / "synthesis.partial.json").write_text(json.dumps({"request": _summary(folder)["request"]}))
    (folder / "files.json").unlink()
    with pytest.raises(UserError, match="does not hold"):
        rendering.check_rendered("tiny-test", folder)
    rendering.render("tiny-test", folder, progress=False)
    assert _files(folder) == _files(rendered)


def test_everything_is_on_the_disk_before_a_rendering_counts_as_finished(tmp_path, monkeypatch):
    synced, fsync, write_file = set(), os.fsync, rendering.write_file

    def noted(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def checked(path, *arguments):
        if path.name == "synthesis.json":
            files = [found for found in path.parent.rglob("*") if not found.name.startswith(".")]
            assert len(files) > 12 and not {str(found) for found in files} - synced
        write_file(path, *arguments)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(rendering, "write_file", checked)
    folder = rendering.render("tiny-test", tmp_path / "set", scale=0.3, processes=1, progress=False)
    assert (folder / "synthesis.json").exists()


@pytest.mark.parametrize("name", ["train.jsonl", "validation.jsonl", "test.jsonl", "audio/mine.wav", "notes.txt"])
def test_a_folder_with_anything_that_was_not_rendered_is_refused_and_left_as_it_is(tmp_path, name):
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="was not rendered by this program; allowed: an empty folder"):
        rendering.render("tiny-test", tmp_path / "mine", progress=False)
    assert _files(tmp_path / "mine") == {name: b"mine"}


@pytest.mark.parametrize("name", ["train.jsonl", "audio", "synthesis.json", "synthesis.partial.json"])
@pytest.mark.parametrize("target", ["kept", "nowhere"])
def test_nothing_is_rendered_through_a_link(tmp_path, name, target):
    (tmp_path / "kept").mkdir()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).symlink_to(tmp_path / target)
    with pytest.raises(UserError, match="is a link|is not from this program"):
        rendering.render("tiny-test", tmp_path / "set", progress=False)
    assert not list((tmp_path / "kept").iterdir()) and not (tmp_path / "nowhere").exists()


def test_what_must_be_rendered_already_is_not_rendered(rendered, tmp_path):
    rendering.check_rendered("tiny-test", rendered)
    with pytest.raises(UserError, match=r"does not hold the synthetic set 'tiny-test'.*synthesize --set tiny-test"):
        rendering.check_rendered("tiny-test", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(UserError, match="another rendering"):
        rendering.check_rendered("hard", rendered)


def test_an_unknown_voice_variant_or_set_is_one_line_with_near_matches(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps([{"name": "me", "voice": "en-uss"}]))
    done = _command("--speakers", tmp_path / "mine.json", "--output", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "'en-uss'" in done.stderr
    assert "did you mean 'en-us' or" in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"variant 'wisper'; did you mean 'whisper' or"):
        espeak.check_voice("en-us", "wisper")
    with pytest.raises(UserError, match=r"'hart'; allowed: hard, plain, accents, tiny-test"):
        rendering.render("hart", tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"voice": "fr"}, "has no name"),
        ({"name": "a/b"}, "'a/b'"),
        ({"name": "a", "rate": 1000}, "rate is 1000; allowed: 80 to 450"),
        ({"name": "a", "speed": 3}, "unknown speaker field 'speed'; allowed: name, voice"),
        ({"name": "a", "noise_kind": "brown"}, "'brown'; allowed: white, pink"),
        ({"name": "a", "band": [3000, 300]}, "band"),
        ({"name": "a", "noise_snr_db": "loud"}, "noise_snr_db"),
        ({"name": "a", "band": 300}, "band 300"),
        ({"name": "a", "voice": 7}, "voice 7"),
    ],
)
def test_a_wrong_speaker_is_one_line_that_names_the_value(tmp_path, row, message):
    (tmp_path / "s.json").write_text(json.dumps([row]))
    with pytest.raises(UserError) as error:
        speakers.speakers_from_json(tmp_path / "s.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_own_speakers_are_rendered_with_their_tags(tmp_path):
    own = (speakers.Speaker("me", voice="hi", rate=200, noise_snr_db=10.0, room_seconds=0.2, band=(300, 3400)),)
    folder = rendering.render("custom", tmp_path / "out", speakers=own, scale=0.05, sample_rate=16000, progress=False)
    utterances = manifest.load_manifest(folder / "train.jsonl", report=DataReport(strict=True))
    assert len(utterances) == round(0.05 * speakers.SETS["hard"].utterances["train"]) == 20
    assert utterances[0].tags == {"speaker": "me", "lang": "en", "voice": "hi", "variant": ""}
    assert soundfile.info(utterances[0].audio_filepath).samplerate == 16000


def test_adding_a_speaker_changes_no_other_speaker():
    one, two = speakers.Speaker("one"), speakers.Speaker("two", voice="de")
    alone = rendering._plan(speakers.custom_set((two,)), 0.1)
    together = rendering._plan(speakers.custom_set((one, two)), 0.1)
    assert [(job.text, job.seed) for job in together if job.speaker == two] == [(job.text, job.seed) for job in alone]


def test_the_hard_set_has_enough_test_words_of_at_least_six_speakers():
    jobs = [job for job in rendering._plan(speakers.SETS["hard"], 1.0) if job.split == "test"]
    assert len({job.speaker.name for job in jobs}) >= 6
    assert sum(len(job.text.split()) for job in jobs) >= 1200


def test_plain_voices_of_validation_and_test_are_never_trained():
    make = speakers.SETS["plain"].make
    trained = {(speaker.voice, speaker.variant) for speaker in make("train")}
    held_out = {(speaker.voice, speaker.variant) for split in ("validation", "test") for speaker in make(split)}
    assert len(held_out) > 20
    assert not trained & held_out
    assert len(make("train")) * speakers.SETS["plain"].utterances["train"] >= 40_000


@pytest.mark.parametrize("name", speakers.SETS)
def test_every_named_speaker_can_be_rendered(name):
    for split in grammar.SPLITS:
        for speaker in speakers.SETS[name].make(split):
            speakers.check_speaker(speaker)


def _recorded(seed=0, **changes):
    speaker = {
        "stretch": 1.0,
        "noise_snr_db": None,
        "noise_kind": "white",
        "room_seconds": 0.0,
        "band": None,
        **changes,
    }
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)).astype(np.int16)
    spoken = np.concatenate([np.zeros(5000, np.int16), tone, np.zeros(5000, np.int16)])
    return voice_worker.record(spoken, spoken_rate=22050, sample_rate=8000, speaker=speaker, seed=[seed]) / 32767


def test_recording_conditions_do_what_they_say():
    clean = _recorded()
    assert 0.2 <= np.abs(clean).max() <= 0.9
    assert 8000 <= clean.size <= 8000 * 1.6  # silence is cut, pauses of up to 0.3 s are put in its place
    assert _recorded(stretch=1.25).size == pytest.approx(clean.size - 1600, abs=2)
    middle = slice(clean.size // 2 - 2000, clean.size // 2 + 2000)

    def noise_db(kind):
        noisy = _recorded(noise_snr_db=10.0, noise_kind=kind)
        gain = np.dot(noisy[middle], clean[middle]) / np.dot(clean[middle], clean[middle])
        return 10 * np.log10(np.mean((gain * clean) ** 2) / np.mean((noisy - gain * clean) ** 2))

    share = 10 * np.log10(8000 / clean.size)  # the noise is as long as the pauses, too
    assert noise_db("white") == pytest.approx(10 + share, abs=0.5)
    assert noise_db("pink") == pytest.approx(10 + share, abs=1.5)
    roomy = _recorded(room_seconds=0.25)
    assert np.flatnonzero(roomy)[-1] - np.flatnonzero(roomy)[0] > 8000 + 1900  # the tone of one second and its echo
    low = np.abs(np.fft.rfft(_recorded(noise_snr_db=0.0, band=(1000, 2000))))
    frequency = np.fft.rfftfreq(2 * low.size - 2, 1 / 8000)
    assert low[frequency < 300].mean() < 0.2 * low[(frequency > 1100) & (frequency < 1900)].mean()


def test_silence_is_an_error():
    with pytest.raises(ValueError, match="spoke nothing"):
        voice_worker.record(np.zeros(100, np.int16), spoken_rate=22050, sample_rate=8000, speaker={}, seed=[0])


def test_a_failing_utterance_stops_the_rendering_and_is_named(tmp_path):
    mute = (speakers.Speaker("mute", voice="kaa"),)  # a voice whose dictionary is not in the wheel
    with pytest.raises(RuntimeError, match="mute"):
        rendering.render("custom", tmp_path / "out", speakers=mute, scale=0.01, progress=False)
    assert not (tmp_path / "out" / "synthesis.json").exists()


def test_the_process_that_failed_says_why_not_those_that_are_stopped(tmp_path):
    # Each process has some utterances of the mute speaker; the one that comes to it first stops the others.
    mute = speakers.Speaker("mute", voice="kaa")
    many = [speakers.Speaker(f"plain{index}", voice="en-us") for index in range(4)]
    for _ in range(3):
        with pytest.raises(RuntimeError, match="speech synthesis failed: mute"):
            rendering.render(
                "custom",
                tmp_path / "out",
                speakers=(many[0], mute, *many[1:]),
                scale=0.01,
                processes=3,
                progress=False,
            )
