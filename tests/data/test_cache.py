"""Shards are made of any source: the same bytes however often the work was stopped, and nothing bad in them."""

import hashlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from reference import full_disk

from hra_jax import verify
from hra_jax.data import audio, cache, shard_files, shard_parts, shards, sources
from hra_jax.data.cache import Items
from hra_jax.data.examples import Example
from hra_jax.data.report import DataReport
from hra_jax.data.shard_parts import ShardSettings
from hra_jax.errors import UserError

RATE = 16000


def _world(folder, *, count=12, seconds=0.4):
    """A manifest of sounds of several formats, rates and channels, some of which cannot be used."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for number in range(count):
        rate = (16000, 8000, 44100)[number % 3]
        name = f"{number}.{('wav', 'flac')[number % 2]}"
        shape = (int(seconds * rate) + 100 * number, 2) if number % 4 == 3 else int(seconds * rate) + 100 * number
        sound = (random.integers(-9000, 9000, shape)).astype(np.int16)
        soundfile.write(folder / name, sound, rate)
        row = {
            "audio_filepath": name,
            "duration": len(sound) / rate,
            "text": f"text {number}",
            "speaker": f"s{number % 3}",
        }
        rows.append(row | ({"offset": 0.1, "duration": 0.2} if number == 5 else {}))
    rows.insert(2, {"audio_filepath": "none.wav", "duration": 1.0, "text": "gone", "speaker": "s1"})
    rows.insert(4, {"duration": 1.0, "text": "no path", "speaker": "s1"})
    (folder / "noise.wav").write_bytes(b"no sound at all")
    rows.append({"audio_filepath": "noise.wav", "duration": 1.0, "text": "noise", "speaker": "s2"})
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def _cache(source, output, *, workers=1, **settings):
    report = DataReport()
    items = cache.items_of(str(source), data_dir="", modules=(), report=report)
    settings = ShardSettings(**{"shard_seconds": 1.5, **settings})
    return cache.cache(items, output, settings=settings, workers=workers, report=report)


def _digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name[0] != "."
    }


def _content(source):
    utterances, refused = sources.read_source(source, report=DataReport())
    return list(utterances), refused


@pytest.mark.parametrize("encoding", shard_files.ENCODINGS)
def test_shards_hold_what_their_manifest_names(tmp_path, encoding):
    manifest, output = _world(tmp_path / "m"), tmp_path / "s"
    made = _cache(manifest, output, encoding=encoding)
    originals, lines = _content(manifest)
    utterances, refused = _content(output)
    assert made.utterances == len(utterances) == 12 and made.shards > 3 and made.new == made.shards
    known = {row.key: row for row in originals}
    assert [row.key for row in utterances] == [key for key in known if key not in ("none.wav", "noise.wav")]
    for row in utterances:
        original = known[row.key]
        same = ("audio_filepath", "offset", "duration", "text", "tags", "line")
        assert [getattr(row, name) for name in same] == [getattr(original, name) for name in same]
        assert audio.sample_hash(row) == audio.sample_hash(original)
        expected = audio.decode(original, RATE)
        # 16 bits of what is resampled, or a mean of channels; to the last bit of what is not
        exact = row.key in ("0.wav", "6.wav")
        np.testing.assert_allclose(audio.decode(row, RATE), expected, rtol=0, atol=0 if exact else 0.51 / 32768)
    assert [(row.key, row.why.partition(":")[0], row.tag("speaker")) for row in refused] == [
        ("none.wav", "missing_file", "s1"),
        ("noise.wav", "undecodable_audio", "s2"),
        (lines[0].key, "missing_field", "s1"),
    ]
    counts = json.loads((output / "report.json").read_text())["counts"]
    assert counts == {"missing_file": 1, "undecodable_audio": 1, "missing_field": 1}


def test_shards_of_shards_keep_the_hashes_of_the_first_source(tmp_path):
    manifest = _world(tmp_path / "m")
    _cache(manifest, tmp_path / "first", sample_rate=8000)
    _cache(tmp_path / "first", tmp_path / "second", sample_rate=8000, encoding="flac", shard_seconds=100.0)
    first, second = (_content(tmp_path / name)[0] for name in ("first", "second"))
    assert [row.sample_hash for row in first] == [row.sample_hash for row in second]
    for one, other in zip(first, second, strict=True):
        assert (one.key, one.audio_filepath) == (other.key, other.audio_filepath)
        np.testing.assert_array_equal(audio.decode(one, 8000), audio.decode(other, 8000))
    assert len(list((tmp_path / "second").glob("shards-*"))) == 1


def test_a_shard_that_was_lost_is_made_again_as_it_was(tmp_path):
    manifest, output = _world(tmp_path / "m"), tmp_path / "s"
    made = _cache(manifest, output)
    before = _digests(output)
    assert _cache(manifest, output)._replace(report=None) == made._replace(new=0, report=None)
    (output / shards.shard_name(1)).unlink()
    cut = output / shards.shard_name(2)
    cut.write_bytes(cut.read_bytes()[:-100])
    assert _cache(manifest, output).new == 2 and _digests(output) == before
    (output / "files.json").unlink()  # a process was killed before it had written the last file
    assert _cache(manifest, output).new == 0 and _digests(output) == before
    (output / shards.INDEX).unlink()
    with pytest.raises(UserError, match="holds other files"):
        _cache(manifest, output)


def test_a_folder_of_something_else_is_refused_and_says_what_differs(tmp_path):
    manifest, output = _world(tmp_path / "m", count=3), tmp_path / "s"
    _cache(manifest, output)
    with pytest.raises(UserError, match="made with sample_rate 16000, not 8000; allowed: another --output"):
        _cache(manifest, output, sample_rate=8000)
    with manifest.open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="other content of the source"):
        _cache(manifest, output)
    with pytest.raises(UserError, match="holds other files, such as '0.wav'"):
        _cache(manifest, tmp_path / "m")
    with pytest.raises(UserError, match="none of its utterances can be used"):
        (tmp_path / "none.jsonl").write_text('{"audio_filepath": "x.wav", "duration": 1, "text": "a"}\n')
        _cache(tmp_path / "none.jsonl", tmp_path / "n")
    assert not list((tmp_path / "n").glob("[a-z]*"))


def test_examples_of_a_corpus_have_the_samples_and_hashes_of_the_same_files(tmp_path):
    manifest = _world(tmp_path / "m", count=8)
    originals = [row for row in _content(manifest)[0] if row.key not in ("none.wav", "noise.wav", "5.flac@0.1+0.2")]
    examples = []
    for number, row in enumerate(originals):
        samples, rate = soundfile.read(row.audio_filepath, dtype="int16")
        content = pathlib.Path(row.audio_filepath).read_bytes()
        sound, given = [
            (content, 0),
            (samples, rate),
            (samples / np.float64(32768), rate),
            (samples * np.int32(65536), rate),
        ][number % 4]
        examples.append(Example(row.key, sound, given, row.text, {"speaker": row.tag("speaker"), "n": number}))
    examples.append(Example("empty", np.zeros(0, np.int16), 16000, "nothing"))
    examples.append(Example("broken", b"fLaC and no more", 0, "nothing"))
    report = DataReport()
    items = Items("seqio:a/train", {"a": 1}, iter(examples), None)
    cache.cache(items, tmp_path / "s", settings=ShardSettings(shard_seconds=1.0), report=report)
    utterances, refused = _content(tmp_path / "s")
    assert [row.key for row in refused] == ["empty", "broken"]
    assert report.counts()["empty_audio"] == report.counts()["undecodable_audio"] == 1
    for row, original in zip(utterances, originals, strict=True):
        assert row.audio_filepath == row.address
        assert row.sample_hash == audio.sample_hash(original)
        samples = audio.decode(row, RATE)
        assert row.duration == samples.size / RATE
        np.testing.assert_allclose(samples, audio.decode(original, RATE), rtol=0, atol=0.51 / 32768)


def test_several_splits_of_a_corpus_are_named_in_one_command():
    splits = ["seqio:hra/librispeech/lazy_decode/train", "seqio:hra/librispeech/lazy_decode/test"]
    both = "seqio:hra/librispeech/lazy_decode/train,test"
    assert cache.one_by_one(both, output=None) == splits
    assert cache.one_by_one(splits[0], output="s") == splits[:1]
    assert cache.one_by_one("a,b.jsonl", output="s") == ["a,b.jsonl"]
    with pytest.raises(UserError, match="are 2 folders of shards; allowed: --data_dir, and no --output"):
        cache.one_by_one(both, output="s")


def test_utterances_without_tags_and_shards_without_utterances_are_read(tmp_path):
    sounds = [np.arange(16000, dtype=np.int16) * number for number in range(3)]
    broken = [Example(f"bad {number}", b"no sound" * 4000, 0, "a") for number in range(2)]
    good = [Example(str(number), sound, RATE, "a", {"x": float("nan")}) for number, sound in enumerate(sounds)]
    items = Items("test", 1, [good[0], *broken, *good[1:]], None)
    for _ in range(2):
        cache.cache(items, tmp_path / "s", settings=ShardSettings(shard_seconds=1.0), report=DataReport())
        utterances, refused = _content(tmp_path / "s")
        assert [row.shard.records for row in utterances] == [1, 1, 1] and [row.key for row in refused] == [
            "bad 0",
            "bad 1",
        ]
        np.testing.assert_array_equal(audio.decode(utterances[2], RATE) * 32768, sounds[2])
        assert [row.tags for row in utterances] == [{}] * 3
        (tmp_path / "s" / shards.shard_name(0)).unlink()  # which has the second call put parts together again


def test_a_full_disk_ends_the_work_and_the_next_call_completes_it(tmp_path):
    manifest = _world(tmp_path / "m")
    _cache(manifest, tmp_path / "whole")
    with full_disk.no_file_larger_than(50_000), pytest.raises(OSError, match="File too large"):
        _cache(manifest, tmp_path / "s")
    assert not shards.is_shards(tmp_path / "s") and not list((tmp_path / "s").glob(".*tmp"))
    _cache(manifest, tmp_path / "s")
    assert _digests(tmp_path / "s") == _digests(tmp_path / "whole")


@pytest.mark.slow(minutes=1)
def test_tensorflow_datasets_opens_the_folder_and_gives_the_samples(tmp_path):
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    manifest = _world(tmp_path / "m")
    for encoding in shard_files.ENCODINGS:
        _cache(manifest, tmp_path / encoding, encoding=encoding)
        source = tfds.builder_from_directory(tmp_path / encoding).as_data_source("train")
        plain = ArrayRecordDataSource([str(path) for path in sorted((tmp_path / encoding).glob("shards-*"))])  # grain's
        utterances, _ = _content(tmp_path / encoding)
        assert len(source) == len(plain) == len(utterances) == 12
        for row, fields, record in zip(utterances, source, plain, strict=True):
            assert shard_files.sound_of(record)[1] == row.sample_hash
            assert (fields["id"].decode(), fields["text"].decode(), fields["sample_rate"]) == (row.key, row.text, RATE)
            assert json.loads(fields["tags"]) == row.tags and int(fields["hash"], 16) == row.sample_hash
            sound = fields["audio"]
            if encoding == "flac":
                sound = soundfile.read(io.BytesIO(sound), dtype="int16")[0]
            np.testing.assert_array_equal(sound / np.float32(32768), audio.decode(row, RATE))


def test_verify_names_a_flipped_bit_and_a_shard_that_is_cut_short(tmp_path):
    output = tmp_path / "s"
    _cache(_world(tmp_path / "m"), output)
    (part,) = verify.verify(output)
    assert part.files == len(_digests(output)) and not part.faults
    flipped, cut = (output / shards.shard_name(number) for number in (0, 1))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    (part,) = verify.verify(output)
    assert [file for file, _ in part.faults] == [flipped.name, cut.name]


# --- The command ------------------------------------------------------------------------------------------------------


def _command(manifest, output, *words):
    command = [
        sys.executable,
        "-m",
        "hra_jax.data.cache",
        "--source",
        manifest,
        "--output",
        output,
        "--shard_seconds=2",
    ]
    return [*map(str, command), *words]


def _run(command, env, status=0):
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.slow(minutes=2)
def test_the_command_killed_five_times_gives_the_bytes_of_one_that_was_not(tmp_path, command_env):
    manifest = _world(tmp_path / "m", count=60, seconds=1.5)
    done = _run(_command(manifest, tmp_path / "whole", "--workers=1"), command_env)
    assert "left out: 1 missing_field" in done.stdout and "60 utterances" in done.stdout
    output, kills = tmp_path / "s", 0
    while kills < 5:
        seen = len(list(output.glob("shards-*")))
        process = subprocess.Popen(
            _command(manifest, output, f"--workers={kills % 3 + 1}"), env=command_env, start_new_session=True
        )
        end = time.monotonic() + 60
        while (
            len(list(output.glob("shards-*"))) < seen + 2 + kills and time.monotonic() < end and process.poll() is None
        ):
            time.sleep(0.002)
        assert process.poll() is None, "it was complete before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert not shards.is_shards(output)
    done = _run(_command(manifest, output, "--workers=2"), command_env)
    assert "of them written now" in done.stdout
    assert _digests(output) == _digests(tmp_path / "whole")
    assert "complete before" in _run(_command(manifest, output), command_env).stdout
    assert not list(output.glob(".*tmp")) and not (output / shard_parts.FOLDER).exists()
