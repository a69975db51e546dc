"""`manifest import`: corpora as they are published give their utterances, and say what they leave out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reference import corpus_trees, endless

from hra_jax.data import audio, manifest
from hra_jax.data.importers import importing
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError

KINDS = sorted(corpus_trees.TREES)
# A recording of each corpus that is one utterance, of a split with others.
LOST = {
    "kaldi": "sw02005.wav",
    "librispeech": "84-121123-0001.flac",
    "libritts": "60_121082_000008_000000.wav",
    "user_libri": "1089-134686-0001.flac",
    "common_voice": "common_voice_nl_23522442.mp3",
    "tedlium": "AaronHuey_2010X.sph",
    "audio_folder": "second_audio_file.mp3",
    "nemo": "audio_2.wav",
}


def read(path):
    """The utterances of a manifest, as {name of the recording, with the offset where there is one: utterance}."""
    found = manifest.load_manifest(path, report=DataReport(strict=True))
    names = [Path(utterance.audio_filepath).name for utterance in found]
    named = [name + (f"@{u.offset:.2f}" if "@" in u.key else "") for name, u in zip(names, found, strict=True)]
    return dict(zip(named, found, strict=True))


def imported(folder, output, **options):
    """What was imported: {split: {name: utterance}}, and what was left out, {kind: {name: detail}}."""
    parts = importing.import_corpus(folder, output, **options)
    report = DataReport()
    for part in parts.values():
        report.merge(part.report.to_json())
    bad = {kind: {row["name"]: row["detail"] for row in rows} for kind, rows in report.to_json()["utterances"].items()}
    return {Path(path).stem: read(path) for path in parts}, bad


def texts(splits):
    return {split: {name: utterance.text for name, utterance in own.items()} for split, own in splits.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_as_it_is_published_gives_all_its_utterances(tmp_path, capsys, kind):
    expected = corpus_trees.TREES[kind](tmp_path / "corpus")
    splits, bad = imported(tmp_path / "corpus", tmp_path / "out")
    assert f"is read as {kind}" in capsys.readouterr().out
    assert texts(splits) == expected
    assert set(bad) <= {"no_text"}
    for utterance in (utterance for own in splits.values() for utterance in own.values()):
        samples = audio.decode(utterance, 8000)
        assert abs(len(samples) / 8000 - utterance.duration) < 0.005 and np.std(samples) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_that_is_missing_is_named_and_the_rest_goes_on(tmp_path, kind):
    expected = corpus_trees.TREES[kind](tmp_path / "corpus")
    (path,) = (tmp_path / "corpus").rglob(LOST[kind])
    path.unlink()
    splits, bad = imported(tmp_path / "corpus", tmp_path / "out")
    left = {
        split: {name: text for name, text in own.items() if not name.startswith(LOST[kind])}
        for split, own in expected.items()
    }
    assert texts(splits) == left
    lost = sum(map(len, expected.values())) - sum(map(len, left.values()))
    assert lost == 1 and len(bad["missing_file"]) == lost and LOST[kind] in str(bad["missing_file"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"no audio", None], ids=["empty", "text", "pipe"])
def test_a_recording_that_cannot_be_opened_is_named_and_the_rest_goes_on(tmp_path, kind, content):
    corpus_trees.TREES[kind](tmp_path / "corpus")
    (path,) = (tmp_path / "corpus").rglob(LOST[kind])
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with endless.bounded():
        splits, bad = imported(tmp_path / "corpus", tmp_path / "out")
    assert all(splits.values())
    assert len(bad["empty_audio" if content == b"" else "undecodable_audio"]) == 1


@pytest.mark.parametrize("kind", ["librispeech", "user_libri", "common_voice", "tedlium", "audio_folder", "nemo"])
def test_a_corpus_and_its_manifests_can_be_moved_together(tmp_path, kind):
    corpus_trees.TREES[kind](tmp_path / "here" / "corpus")
    importing.import_corpus(tmp_path / "here" / "corpus", tmp_path / "here" / "lists")
    shutil.move(tmp_path / "here", tmp_path / "there")
    paths = [u.audio_filepath for path in (tmp_path / "there" / "lists").iterdir() for u in read(path).values()]
    assert paths and all(map(os.path.exists, paths))


def test_a_corpus_that_links_lead_to_is_read_through_them(tmp_path):
    expected = corpus_trees.librispeech(tmp_path / "store")
    (tmp_path / "corpus").mkdir()
    for path in (tmp_path / "store").iterdir():
        (tmp_path / "corpus" / path.name).symlink_to(path)
    assert texts(imported(tmp_path / "corpus", tmp_path / "out")[0]) == expected


def test_splits_are_chosen_by_either_of_their_names(tmp_path):
    expected = corpus_trees.tedlium(tmp_path / "corpus")
    for names in (["validation", "train"], ["dev", "data"], ["legacy/dev", "train"]):
        splits, _ = imported(tmp_path / "corpus", tmp_path / "out", splits=names)
        assert texts(splits) == {name: expected[name] for name in ("validation", "train")}
    with pytest.raises(UserError, match="no split 'eval'; allowed: train, validation, test"):
        imported(tmp_path / "corpus", tmp_path / "out", splits=["eval"])


def test_splits_that_would_be_one_manifest_are_refused(tmp_path):
    expected = corpus_trees.nemo(tmp_path / "corpus")
    importing.import_corpus(tmp_path / "corpus", tmp_path / "corpus")
    with pytest.raises(UserError, match=r"train.jsonl and train_manifest.json would both be train.jsonl"):
        imported(tmp_path / "corpus", tmp_path / "corpus")
    splits, _ = imported(tmp_path / "corpus", tmp_path / "out", splits=["train_manifest.json"])
    assert texts(splits) == {"train": expected["train"]}


def test_one_split_can_be_written_to_a_manifest_of_any_name(tmp_path):
    expected = corpus_trees.kaldi(tmp_path / "corpus")
    splits, _ = imported(tmp_path / "corpus" / "test", tmp_path / "lists" / "own.jsonl")
    assert texts(splits) == {"own": expected["test"]}
    with pytest.raises(UserError, match=r"one manifest for the splits train, test; allowed: a folder"):
        imported(tmp_path / "corpus", tmp_path / "own.jsonl")


def test_splits_are_made_anew_of_what_every_speaker_has(tmp_path):
    expected = corpus_trees.user_libri(tmp_path / "corpus")
    splits, _ = imported(tmp_path / "corpus", tmp_path / "out", split_by="user")
    everything = {name: text for own in expected.values() for name, text in own.items()}
    assert {name: text for own in texts(splits).values() for name, text in own.items()} == everything
    users = {"speaker-1089-book-4217", "speaker-367-book-20027"}
    for split in ("train", "validation", "test"):
        assert [u.tags["user"] for u in splits[split].values()] == sorted(users) and len(splits[split]) == 2


def test_a_folder_that_may_be_of_several_kinds_is_refused_unless_the_kind_is_named(tmp_path):
    expected = corpus_trees.librispeech(tmp_path / "corpus")
    corpus_trees.kaldi(tmp_path / "corpus")
    with pytest.raises(UserError, match="may be of several kinds; allowed: --kind=kaldi or --kind=librispeech"):
        imported(tmp_path / "corpus", tmp_path / "out")
    assert texts(imported(tmp_path / "corpus", tmp_path / "out", kind="librispeech")[0]) == expected


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"nemo"}))
def test_a_corpus_is_imported_again_into_its_own_folder(tmp_path, kind):
    corpus, expected = tmp_path / "corpus", corpus_trees.TREES[kind](tmp_path / "corpus")
    importing.import_corpus(corpus, corpus)
    assert texts(imported(corpus, corpus)[0]) == expected


def test_a_folder_of_no_kind_is_refused_with_what_is_looked_for(tmp_path):
    with pytest.raises(UserError, match="no folder at"):
        imported(tmp_path / "none", tmp_path / "out")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(UserError, match=r"no corpus of a known kind in .*kaldi: .*wav\.scp.*nemo: ") as caught:
        imported(tmp_path / "corpus", tmp_path / "out")
    assert all(f"{kind}: " in str(caught.value) for kind in KINDS)
    with pytest.raises(UserError, match=r"looked for librispeech: the folder LibriSpeech"):
        imported(tmp_path / "corpus", tmp_path / "out", kind="librispeech")


def test_a_split_of_which_nothing_can_be_used_is_an_error_and_nothing_is_written(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    for path in (tmp_path / "corpus" / "wav").glob("*.wav"):
        path.unlink()
    with pytest.raises(UserError, match="no usable utterance in train of .*: 2 missing_file"):
        imported(tmp_path / "corpus", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["kaldi", "librispeech", "common_voice", "tedlium", "nemo"])
def test_lines_that_are_not_utf8_are_named_and_the_rest_goes_on(tmp_path, kind):
    expected = corpus_trees.TREES[kind](tmp_path / "corpus")
    table = {"kaldi": "train/text", "librispeech": "dev-clean/84/121123/84-121123.trans.txt"}
    table |= {"common_voice": "nl/train.tsv", "tedlium": "data/stm/AaronHuey_2010X.stm", "nemo": "train_manifest.json"}
    path = tmp_path / "corpus" / table[kind]
    number = path.read_bytes().count(b"\n") + 1
    path.write_bytes(path.read_bytes() + b"\xe9t\xe9\n")
    splits, bad = imported(tmp_path / "corpus", tmp_path / "out")
    assert texts(splits) == expected
    named = bad["bad_json" if kind == "nemo" else "unreadable_text"]
    assert [name.endswith(f"{path.name}:{number}") for name in named] == [True]
    path.write_bytes("a 1\n".encode("utf-16"))
    if kind != "nemo":  # there it is then no manifest
        with pytest.raises(UserError, match="is UTF-16"):
            imported(tmp_path / "corpus", tmp_path / "out", kind=kind)


def test_a_stream_without_an_end_in_the_place_of_a_table_is_refused(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    (tmp_path / "corpus" / "train" / "text").unlink()
    os.mkfifo(tmp_path / "corpus" / "train" / "text")
    with endless.bounded(), pytest.raises(UserError, match="text cannot be read"):
        imported(tmp_path / "corpus", tmp_path / "out")


def test_the_command_prints_what_it_wrote_and_what_it_left_out(tmp_path):
    corpus_trees.kaldi(tmp_path / "corpus")
    with (tmp_path / "corpus" / "train" / "wav.scp").open("a") as file:
        file.write("sw02009 sph2pipe -f wav -p -c 1 sw02009.sph |\n")
    with (tmp_path / "corpus" / "train" / "text").open("a") as file:
        file.write("sw02009 NOBODY HEARS IT\n")
    command = [sys.executable, "-m", "hra_jax.data.manifest", "import", "corpus", "--output=out", "--report=r.json"]
    relaxed, strict = (
        subprocess.run([*command, *more], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
        for more in ([], ["--strict"])
    )
    assert (relaxed.returncode, strict.returncode) == (0, 2), relaxed.stderr + strict.stderr
    rows = [re.findall(r"[^\s│┃]+", line) for line in relaxed.stdout.splitlines() if "│" in line]
    assert rows == [
        ["train.jsonl", "train", "2", "0.00", "7", "2", "1"],
        ["test.jsonl", "test", "2", "0.00", "4", "1", "0"],
        ["total", "4", "0.00", "11", "3", "1"],
    ]
    assert "command: 1" in relaxed.stdout and "train/sw02009" in relaxed.stdout
    assert json.loads((tmp_path / "r.json").read_text())["counts"] == {"command": 1}
    assert "corpus is read as kaldi" in relaxed.stdout


def test_speechocean762_is_read_whole_with_what_is_known_of_its_speakers(speechocean_dir, tmp_path):
    parts = importing.import_corpus(speechocean_dir, tmp_path)
    rows = [row for part in parts.values() for row in part.rows]
    assert {Path(path).name for path in parts} == {"train.jsonl", "test.jsonl"}
    assert len(rows) == 5000 and len({row["speaker"] for row in rows}) == 250
    assert sum(len(row["text"].split()) for row in rows) == 31_816
    assert sum(row["duration"] for row in rows) / 3600 == pytest.approx(5.57, abs=0.01)
    for name in ("train", "test"):
        for tag in ("age", "gender"):
            known = dict(line.split() for line in (speechocean_dir / name / f"spk2{tag}").read_text().splitlines())
            assert {row["speaker"]: row[tag] for row in parts[str(tmp_path / f"{name}.jsonl")].rows} == known
