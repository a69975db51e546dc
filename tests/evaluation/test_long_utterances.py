"""Utterances longer than any bucket: the parts that they are recognised in, and what is scored."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict
from reference import micro as world

from hra_jax import api
from hra_jax.config.keys import group
from hra_jax.data import audio, cache
from hra_jax.data.cache import ShardSettings
from hra_jax.data.report import DataReport
from hra_jax.data.sources import read_source
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation import long_utterances
from hra_jax.evaluation.runner import SuiteRunner
from hra_jax.evaluation.suites import build_suite, load_suite, suite_digest
from hra_jax.run.scoring import suite_weights

pytestmark = pytest.mark.optimised
PIECES = ("dab", "bed fad", "cad", "fe d", "abcdef")


def long_sound(pause: float, *, rate: int = world.RATE) -> np.ndarray:
    """The pieces one after the other, with faint noise for `pause` seconds between them, float32 `[S]`."""
    rng, sounds = np.random.default_rng(0), []
    for number, text in enumerate(PIECES):
        quiet = 0.003 * rng.standard_normal(int(pause * rate))
        sounds += [world.tones(text, rate=rate, seed=number), quiet.astype(np.float32)]
    return np.concatenate(sounds)


@pytest.fixture(scope="module")
def data(micro, tmp_path_factory):
    """The micro data, its test manifest with three utterances more: with pauses, without, and one of clicks."""
    folder = tmp_path_factory.mktemp("long") / "data"
    shutil.copytree(micro.data, folder)
    rows = world.read_manifest(folder / "test.jsonl")
    clicks = 0.3 * np.random.default_rng(1).standard_normal((8, 3200)) * (np.arange(3200) < 480)
    sounds = {"pauses": long_sound(0.5), "speech": long_sound(0.0), "clicks": clicks.reshape(-1)}
    for name, sound in sounds.items():
        soundfile.write(folder / f"{name}.flac", sound, world.RATE)
        duration = len(sound) / world.RATE
        rows.append({"audio_filepath": f"{name}.flac", "duration": duration, "text": "dab cad", "speaker": "bob"})
    world.write_manifest(folder / "test.jsonl", rows)
    return folder


def make(trained, micro, data, report=None, **changes) -> SuiteRunner:
    config, report = micro.config(**changes), report or DataReport()
    return SuiteRunner(
        load_suite(micro.suite("test"), data_dir=str(data), report=report),
        base=trained.run.material.base,
        tasks=trained.run.layout.tasks,
        mesh=trained.run.layout.mesh,
        data=group(config, "data"),
        batch=group(config, "batch"),
        evaluation=group(config, "eval"),
        report=report,
    )


def scored(trained, runner, **options):
    run = trained.run
    return runner.run(run.layout.programs.evaluation, suite_weights(run, runner), run.frozen, **options)


def test_a_long_utterance_is_scored_as_transcribe_recognises_it_and_short_ones_as_without_it(trained, micro, data):
    runner, plain = make(trained, micro, data), make(trained, micro, micro.data)
    assert len(runner.table) > 6 + 3 and runner.table.duration.max() <= runner.chunk_seconds == 1.0
    assert plain.chunk_seconds == 0.0 and runner.label_capacities == plain.label_capacities
    rows, loss, differences = scored(trained, runner)
    short, short_loss, _ = scored(trained, plain)
    long = {row.key.removesuffix(".flac"): row for row in rows if row.duration > 1}
    same = [dataclasses.replace(row, audio_filepath=str(micro.data / row.key)) for row in rows if row.duration <= 1]
    assert same == short and loss == pytest.approx(short_loss, rel=1e-5)
    assert set(long) == {"pauses", "speech", "clicks"} and min(differences.values()) > 0

    model = api.load_adapter(trained.workdir / "adapter", api.load_backbone(micro.backbone))
    sounds = [soundfile.read(data / f"{name}.flac", dtype="float32")[0] for name in long]
    for task, said in (("bob", "pred_text"), ("__base__", "base_pred_text")):
        wanted = model.transcribe(sounds, sample_rate=world.RATE, tasks=[task] * 3, chunk_seconds=1.0)
        assert [getattr(row, said) for row in long.values()] == wanted
    assert long["pauses"].pred_text and long["clicks"].pred_text == "" and long["pauses"].offset == 0
    assert long["pauses"].duration == len(sounds[0]) / world.RATE and long["pauses"].text == "dab cad"


def test_parts_that_were_recognised_before_are_not_again_and_the_base_is_kept_whole(trained, micro, data):
    settings = {"eval__batch_seconds": 2.0}
    first, again = make(trained, micro, data, **settings), make(trained, micro, data, **settings)
    found: list = []
    names: list = []

    def after(fresh):
        found.append(fresh)
        names.append({at: first.base_texts(at) for at in fresh})

    whole = scored(trained, first, after=after)
    assert {key for _, key in first.kept} == {row.key for row in whole[0]}
    for at, (text, _) in (entry for part in names[::2] for entry in part.items()):
        again.keep(at, text)
    done = {at: row for part in found[::2] for at, row in part.items()}
    fresh: list = []
    rest = scored(trained, again, done=done, after=fresh.append)
    assert len(fresh) == len(found[1::2]) and rest[0] == whole[0] and rest[2] == whole[2]
    # What the base says of the whole is enough.
    assert not first._needs_base(np.arange(len(first.table)), acting=[0, 1, 2])


def test_a_long_utterance_that_cannot_be_read_is_left_out_and_named(trained, micro, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data/pauses.flac").unlink()
    report = DataReport()
    runner = make(trained, micro, tmp_path / "data", report)
    assert report.reasons()["bob: pauses.flac"].startswith("missing_file")
    rows, *_ = scored(trained, runner)
    assert {row.key for row in rows if row.duration > 1} == {"speech.flac", "clicks.flac"}
    # A part that fails later leaves no half of an utterance behind.
    (tmp_path / "data/speech.flac").unlink()
    assert {row.key for row in scored(trained, runner)[0] if row.duration > 1} == {"clicks.flac"}


def test_parts_hold_the_samples_of_their_whole_at_any_rate_and_offset(tmp_path):
    sound = long_sound(0.5, rate=16000)
    soundfile.write(tmp_path / "a.wav", np.concatenate([np.zeros(12345, np.float32), sound]), 16000)
    whole = Utterance(str(tmp_path / "a.wav"), len(sound) / 16000, "words", offset=12345 / 16000, key="a.wav@")
    for rate, tolerance in ((16000, 0), (8000, 1e-3)):
        waveform = audio.decode(whole, rate)
        parts = long_utterances.parts_of(whole, longest_seconds=0.7, sample_rate=rate, hop=rate // 50)
        assert len(parts) > len(PIECES) and len({part.name for part in parts}) == len(parts)
        for part in parts:
            assert (part.key, part.text, part.whole) == (whole.key, whole.text, whole) and part.duration <= 0.7
            samples, edge = audio.decode(part, rate), rate // 50 if tolerance else 0
            wanted = waveform[part.chunk.start : part.chunk.stop]
            assert len(samples) == len(wanted)
            inside = slice(edge, len(wanted) - edge)
            np.testing.assert_allclose(samples[inside], wanted[inside], atol=tolerance)


def test_parts_of_what_is_in_shards_are_read_from_the_record_and_not_from_what_it_was_made_of(tmp_path):
    sound = np.concatenate([np.zeros(12345, np.float32), long_sound(0.5)])
    soundfile.write(tmp_path / "a.wav", sound, world.RATE)
    row = {"audio_filepath": "a.wav", "duration": len(sound) / world.RATE - 1, "offset": 1.0, "text": "words"}
    world.write_manifest(tmp_path / "m.jsonl", [row])
    items = cache.items_of(str(tmp_path / "m.jsonl"), data_dir="", modules=(), report=DataReport())
    cache.cache(items, tmp_path / "S", settings=ShardSettings(sample_rate=world.RATE), report=DataReport())
    (tmp_path / "a.wav").unlink()
    (whole,) = read_source(tmp_path / "S", report=DataReport())[0]
    # As it is in shards, and as a manifest that was copied from them names it.
    for utterance in (whole, Utterance(whole.address, whole.duration, "words", key="copy")):
        waveform = audio.decode(utterance, world.RATE)
        assert len(waveform) == round(whole.duration * world.RATE)
        parts = long_utterances.parts_of(utterance, longest_seconds=0.7, sample_rate=world.RATE, hop=160)
        assert len(parts) > len(PIECES)
        for part in parts:
            assert part.sound_file == whole.shard.path
            np.testing.assert_array_equal(audio.decode(part, world.RATE), waveform[part.chunk.start : part.chunk.stop])


def test_one_long_utterance_in_two_tasks_is_two(trained, micro, data):
    runner = make(trained, micro, data)
    (bob,) = (task for task in runner.suite.tasks if task.name == "bob")
    only = dataclasses.replace(bob, utterances=bob.utterances[-2:-1])
    rows = [
        row
        for name in ("a", "b")
        for row in long_utterances.cut(
            dataclasses.replace(only, name=name),
            "bob",
            limit=1.0,
            longest_seconds=1.0,
            sample_rate=world.RATE,
            hop=160,
            threads=1,
            report=DataReport(),
        ).utterances
    ]
    table = type("Table", (), {"utterances": rows, "source": [0] * (len(rows) // 2) + [1] * (len(rows) // 2)})()
    assert [list(found) for found in long_utterances.parts_in(table)] == [
        [*range(len(rows) // 2)],
        [*range(len(rows) // 2, len(rows))],
    ]


def test_a_suite_may_say_how_long_parts_are(micro):
    def suite(*decode):
        tasks = (("a", "{dir}/test.jsonl", "", "__base__"),)
        config = ConfigDict(
            {"name": "s", "normalizer": "basic", "tasks": tasks} | ({"decode": decode} if decode else {})
        )
        return build_suite(config, data_dir=str(micro.data), report=DataReport())

    plain, short = suite(), suite(("chunk_seconds", 0.5))
    assert suite_digest(plain) != suite_digest(short)
    assert long_utterances.lengths(short, last_bucket=2.0, trained_seconds=1.0) == (0.5, 0.5)
    assert long_utterances.lengths(plain, last_bucket=2.0, trained_seconds=1.0) == (2.0, 1.0)
    assert long_utterances.lengths(plain, last_bucket=2.0, trained_seconds=0.0) == (2.0, 2.0)
    assert long_utterances.lengths(plain, last_bucket=2.0, trained_seconds=9.0) == (2.0, 2.0)
    with pytest.raises(UserError, match="chunk_seconds = 0.5; allowed: at most 0.4, the last length bucket"):
        long_utterances.lengths(short, last_bucket=0.4, trained_seconds=0.0)
    for wrong in (5, ("beem", 3), ("beam", -3), ("chunk_seconds", -1), ("chunk_seconds", 1, 2)):
        with pytest.raises(UserError, match="suite 's'.*(decode|chunk_seconds)"):
            suite(wrong)


@pytest.mark.slow(minutes=0.3)
def test_a_run_is_validated_and_tested_where_only_long_utterances_are(micro, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for split in ("validation", "test"):
        rows = []
        for number, speaker in enumerate(world.SPEAKERS):
            sound = np.concatenate([long_sound(0.5), world.tones("abc", seed=number)])
            soundfile.write(tmp_path / f"data/{split}-{speaker}.flac", sound, world.RATE)
            row = {"audio_filepath": f"{split}-{speaker}.flac", "text": " ".join(PIECES), "speaker": speaker}
            rows.append(row | {"duration": len(sound) / world.RATE})
        world.write_manifest(tmp_path / f"data/{split}.jsonl", rows)
    config = micro.validated_config()
    config.data.dir = str(tmp_path / "data")
    done = world.train(config, tmp_path / "W")
    results = json.loads((tmp_path / "W/eval/test/results.json").read_text())
    assert done.status == 0 and results["utterances"] == 3 and results["utterances_not_scored"] == 0
    lines = [json.loads(line) for line in (tmp_path / "W/metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "validation/wer_macro" in line]
    assert [line["step"] for line in found] == [2, 4] and {line["validation/loss"] for line in found} == {"nan"}
    assert all(line["validation/wer_macro"] > 0 for line in found)
