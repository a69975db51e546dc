"""Manifests of NeMo: segments and tags are kept, what is not true of the audio is named."""

import json

from reference import corpus_trees

from hra_jax.data.importers import importing


def test_offsets_and_tags_are_kept(tmp_path):
    corpus_trees.nemo(tmp_path / "corpus")
    (part,) = importing.import_corpus(tmp_path / "corpus" / "dev_manifest.json", tmp_path / "m.jsonl").values()
    path = "corpus/wavs/long.wav"
    expected = {"audio_filepath": path, "duration": 1.5, "text": "a café", "offset": 3.0, "speaker": "4"}
    assert part.split.name == "validation" and part.rows == [expected]


def test_manifests_that_were_moved_away_from_their_audio(tmp_path):
    expected = corpus_trees.nemo(tmp_path / "corpus")
    (tmp_path / "lists").mkdir()
    for path in (tmp_path / "corpus").glob("*.json"):
        path.rename(tmp_path / "lists" / path.name)
    parts = importing.import_corpus(tmp_path / "lists", tmp_path / "out", audio_dir=tmp_path / "corpus")
    assert sum(len(part.rows) for part in parts.values()) == sum(map(len, expected.values()))


def test_what_is_not_true_of_the_audio_is_named(tmp_path, capsys):
    corpus_trees.nemo(tmp_path / "corpus")
    manifest = tmp_path / "corpus" / "train_manifest.json"
    good = json.loads(manifest.read_text().splitlines()[0])
    rows = [{**good, "shard_id": 0}, {**good, "duration": 9.0}, {**good, "text": ""}, {**good, "duration": None}]
    corpus_trees.write(manifest, *map(json.dumps, rows))
    (part,) = importing.import_corpus(manifest, tmp_path / "m.jsonl").values()
    assert [row["text"] for row in part.rows] == ["the transcription"]
    bad = {kind: [row["name"] for row in found] for kind, found in part.report.to_json()["utterances"].items()}
    assert bad["undecodable_audio"] == ["train_manifest.json:2"] and bad["no_text"] == ["train_manifest.json:3"]
    assert list(bad["missing_field"])[0].endswith("train_manifest.json:4")
    assert "train_manifest.json is of audio in tar files" in capsys.readouterr().out
