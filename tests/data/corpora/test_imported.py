import numpy as np
import pytest
from reference import corpus_trees

from hra_jax.data import audio, cache
from hra_jax.data.corpora import imported, registry
from hra_jax.data.manifest import load_manifest
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError


def failure(function, *arguments, **settings) -> str:
    with pytest.raises(UserError) as raised:
        function(*arguments, **settings)
    return str(raised.value)


def test_a_language_of_a_download_of_several_is_imported_without_its_validated_sentences(tmp_path):
    expected = corpus_trees.common_voice(tmp_path / "cv")
    imported.prepare("hra/common_voice/ga-IE", tmp_path / "D", source=tmp_path / "cv")
    folder = tmp_path / "D" / "manifests" / "common_voice" / "ga-IE"
    assert sorted(path.name for path in folder.iterdir()) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    for split in ("train", "validation", "test"):
        found = list(registry.examples("hra/common_voice/ga-IE", split, data_dir=str(tmp_path / "D")))
        assert found and {row.text for row in found} <= set(expected[split].values())
        assert {row.tags["locale"] for row in found} == {"ga-IE"}


@pytest.mark.parametrize(("folder", "there"), [("", "'ga-IE', 'nl'"), ("nl", "'nl'")])
def test_a_download_without_the_language_that_is_named_is_refused(tmp_path, folder, there):
    corpus_trees.common_voice(tmp_path / "cv")
    said = failure(imported.prepare, "hra/common_voice/cs", tmp_path / "D", source=tmp_path / "cv" / folder)
    assert said == (
        f"{tmp_path / 'cv' / folder} is Common Voice in {there}; needed: the folder of 'cs', or one that holds it"
    )
    assert not (tmp_path / "D").exists()


def test_validated_sentences_are_imported_where_they_are_named(tmp_path):
    corpus_trees.common_voice(tmp_path / "cv")
    source = tmp_path / "cv" / "nl"
    split = "validated" if (source / "validated.tsv").exists() else None
    if split is None:
        (source / "validated.tsv").write_bytes((source / "train.tsv").read_bytes())
    imported.prepare("hra/common_voice/nl", tmp_path / "D", source=source, splits=("validated",))
    (path,) = imported.manifests("hra/common_voice/nl", "validated", tmp_path / "D")
    assert path.name == "validated.jsonl" and not path.with_name("train.jsonl").exists()


def test_a_set_that_is_not_there_is_told_with_the_command_that_prepares_it(tmp_path):
    corpus_trees.libritts(tmp_path / "LibriTTS")
    imported.prepare("hra/libritts", tmp_path / "D", source=tmp_path / "LibriTTS")
    assert len(imported.manifests("hra/libritts", "train_clean100", tmp_path / "D")) == 1
    said = failure(imported.manifests, "hra/libritts", "train", tmp_path / "D")
    assert said.startswith(
        f"hra/libritts/train is not prepared: there is no {tmp_path}/D/manifests/libritts/train_clean360"
    )
    assert said.endswith(f"prepare hra/libritts --source DOWNLOADED --data_dir {tmp_path}/D")


@pytest.mark.parametrize(
    ("name", "splits", "named"),
    [
        ("hra/tedlium/release3", (), "no corpus of a known kind in "),
        ("hra/common_voice/cs", ("dev",), "hra/common_voice/cs has no split 'dev'; allowed: train, validation"),
    ],
)
def test_what_is_no_such_corpus_is_told_in_a_line(tmp_path, name, splits, named):
    corpus_trees.libritts(tmp_path / "other")
    assert named in failure(imported.prepare, name, tmp_path / "D", source=tmp_path / "other", splits=splits)


def test_another_release_than_the_one_that_is_named_is_refused(tmp_path):
    corpus_trees.tedlium(tmp_path / "TED")
    said = failure(imported.prepare, "hra/tedlium/release1", tmp_path / "D", source=tmp_path / "TED")
    assert said == f"{tmp_path}/TED is release 3 of TED-LIUM; needed: the folder of release1"
    (tmp_path / "TED/legacy").rename(tmp_path / "old")
    said = failure(imported.prepare, "hra/tedlium/release3", tmp_path / "D", source=tmp_path / "old")
    assert said == f"{tmp_path}/old is release 1 or 2 of TED-LIUM; needed: the folder of release3"
    assert not (tmp_path / "D").exists()


def test_segments_of_talks_are_the_samples_of_their_time(tmp_path):
    corpus_trees.tedlium(tmp_path / "TED")
    imported.prepare("hra/tedlium/release3", tmp_path / "D", source=tmp_path / "TED")
    found = list(registry.examples("hra/tedlium/release3", "train", data_dir=str(tmp_path / "D")))
    (path,) = imported.manifests("hra/tedlium/release3", "train", tmp_path / "D")
    rows = load_manifest(path, report=DataReport())
    assert len(found) == len(rows) and any(row.offset for row in rows)
    for row, example in zip(rows, found, strict=True):
        np.testing.assert_array_equal(example.audio, audio.decode(row, example.sample_rate))
        assert (example.id, example.text) == (row.key, row.text)


def test_shards_are_made_of_the_manifests_so_that_all_processes_decode(tmp_path):
    corpus_trees.libritts(tmp_path / "LibriTTS")
    imported.prepare("hra/libritts", tmp_path / "D", source=tmp_path / "LibriTTS")
    source = "seqio:hra/libritts/train_clean100"
    items = cache.items_of(source, data_dir=str(tmp_path / "D"), modules=(), report=DataReport())
    assert [row.text for row in items.items] == [
        row.text for row in registry.examples("hra/libritts", "train_clean100", data_dir=str(tmp_path / "D"))
    ]
    assert items.total == 2


def test_shards_of_manifests_that_were_written_anew_are_told_from_those_of_the_manifests_that_are_there(tmp_path):
    corpus_trees.libritts(tmp_path / "LibriTTS")
    imported.prepare("hra/libritts", tmp_path / "D", source=tmp_path / "LibriTTS")
    source, folder = "seqio:hra/libritts/train_clean100", str(tmp_path / "D")
    items = cache.items_of(source, data_dir=folder, modules=(), report=DataReport())
    made = registry.shards_folder("hra/libritts", "train_clean100", folder)
    cache.cache(items, made, settings=cache.ShardSettings(), report=DataReport())
    assert [part.folder for part in registry.expand(source, data_dir=folder)] == [made]
    manifest = tmp_path / "D/manifests/libritts/train_clean100.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[1:]))
    said = failure(registry.expand, source, data_dir=folder)
    assert said.startswith(f"the shards in {made} are of another version of hra/libritts than the one that is prepared")
    assert said.endswith(f"remove them, and python -m hra_jax.data.cache --source {source} --data_dir {folder}")
    manifest.unlink()  # where nothing is prepared, shards need nothing
    assert [part.folder for part in registry.expand(source, data_dir=folder)] == [made]
