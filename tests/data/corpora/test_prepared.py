"""Six corpora, as their archives unpack, through TensorFlow Datasets; pydub and ffmpeg are not installed."""

import dataclasses
import importlib.util
import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reference import prepared_trees as trees

from hra_jax.data import cache
from hra_jax.data.corpora import catalogue, prepared, registry, sound_reader
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError

TREES = {
    "hra/librispeech/lazy_decode": trees.librispeech,
    "hra/xtreme_s/fleurs.cs_cz": trees.fleurs,
    "hra/vctk/mic1": trees.vctk,
    "hra/ljspeech": trees.ljspeech,
    "hra/speech_commands": trees.speech_commands,
    "hra/spoken_digit": trees.spoken_digit,
}


@dataclasses.dataclass
class Prepared:
    folder: Path  # of all corpora
    downloads: Path
    reports: dict[str, DataReport]
    read: dict[tuple[str, str], list] = dataclasses.field(default_factory=dict)

    def examples(self, name, split, report=None):
        """The examples of a split, read once; and again where there is a report."""
        if report is not None:
            return list(registry.examples(name, split, data_dir=str(self.folder), report=report))
        if (name, split) not in self.read:
            self.read[name, split] = self.examples(name, split, DataReport())
        return self.read[name, split]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Prepared:
    folder, downloads = tmp_path_factory.mktemp("corpora"), tmp_path_factory.mktemp("downloads")
    reports = {}
    (folder / "spoken_digit" / "incomplete.ABCDEF_1.0.9").mkdir(parents=True)
    for name, make in TREES.items():
        reports[name] = DataReport()
        with trees.downloaded(make(downloads)):
            prepared.prepare(name, folder, report=reports[name])
    return Prepared(folder, downloads, reports)


def samples(example) -> np.ndarray:
    """int16 [S] of an example."""
    if isinstance(example.audio, bytes):
        return soundfile.read(io.BytesIO(example.audio), dtype="int16")[0]
    return example.audio


def files(corpora, name) -> dict[str, Path]:
    """The file that each example of a corpus comes from, by its id; of Speech Commands none."""
    pattern, key = {
        "hra/librispeech/lazy_decode": ("**/*.flac", lambda path: path.stem),
        "hra/xtreme_s/fleurs.cs_cz": ("fleurs/**/*.wav", lambda path: f"cs_cz/{path.name}"),
        "hra/vctk/mic1": ("vctk/**/*_mic1.flac", lambda path: path.stem.removesuffix("_mic1")),
        "hra/ljspeech": ("ljspeech/**/*.wav", lambda path: path.stem),
        "hra/spoken_digit": ("digits/**/*.wav", lambda path: path.name),
    }[name]
    return {key(path): path for path in corpora.downloads.glob(pattern)}


@pytest.mark.parametrize("name", [name for name in TREES if name != "hra/speech_commands"])
def test_samples_are_those_of_the_published_files(corpora, name):
    expected = files(corpora, name)
    for split in catalogue.split_name(name)[2].splits:
        for example in corpora.examples(name, split):
            info = soundfile.info(expected[example.id])
            assert example.sample_rate == (0 if isinstance(example.audio, bytes) else info.samplerate)
            wanted = soundfile.read(expected[example.id], dtype="float32")[0]
            found = samples(example).astype(np.float32) / 32768
            tolerance = 0.5 / 32768 if info.subtype == "FLOAT" else 0.0
            np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def rows(corpora, name, split) -> dict[str, tuple[str, dict]]:
    found = corpora.examples(name, split)
    assert {example.tags["corpus"] for example in found} == {name.split("/")[1]}
    return {
        example.id: (example.text, {tag: value for tag, value in example.tags.items() if tag != "corpus"})
        for example in found
    }


def test_librispeech_has_its_texts_in_lower_case_and_what_is_known_of_its_speakers(corpora):
    found = rows(corpora, "hra/librispeech/lazy_decode", "validation")
    known = {"speaker": "84", "chapter": "121123", "gender": "female"}
    assert found["84-121123-0000"] == ("go do you hear number a", known)
    assert len(found) == 4
    assert len(rows(corpora, "hra/librispeech/lazy_decode", "train")) == 6
    assert set(rows(corpora, "hra/librispeech/lazy_decode", "dev_clean")) == {"84-121123-0000", "84-121123-0001"}


def test_fleurs_has_its_normalised_texts(corpora):
    found = rows(corpora, "hra/xtreme_s/fleurs.cs_cz", "train")
    tags = {"language": "cs_cz", "gender": "female", "sentence": "101"}
    assert found["cs_cz/10000000000001train.wav"] == ("řekl měsíc č 1 a odešel", tags)
    assert [len(rows(corpora, "hra/xtreme_s/fleurs.cs_cz", split)) for split in ("train", "validation", "test")] == [
        4,
        1,
        2,
    ]


def test_vctk_has_its_speakers_and_accents_and_leaves_out_what_has_no_text(corpora):
    report = DataReport()
    found = corpora.examples("hra/vctk/mic1", "all", report)
    assert {example.tags["accent"] for example in found} == {"English"}
    assert {example.tags["speaker"] for example in found} == {"p225", "p226"} and len(found) == 28
    assert list(report.reasons()) == ["hra/vctk/mic1/all: p315_001"]


def test_lj_speech_has_its_normalised_texts_and_keeps_quotes(corpora):
    report = DataReport()
    found = {example.id: example.text for example in corpora.examples("hra/ljspeech", "all", report)}
    assert found["LJ001-0003"] == 'The "Book of 3" cost 3 pounds.' and len(found) == 60
    assert list(report.reasons()) == ["hra/ljspeech/all: LJ002-0001"]


def test_speech_commands_are_words_without_silence_and_without_words_that_are_not_told(corpora):
    parts = {split: corpora.examples("hra/speech_commands", split) for split in ("train", "validation", "test")}
    texts = {split: sorted(example.text for example in found) for split, found in parts.items()}
    assert texts == {"train": ["no", "yes"], "validation": ["no", "yes"], "test": ["no", "yes"]}
    assert corpora.reports["hra/speech_commands"].counts()["undecodable_audio"] == 1
    (wanted,) = [example for example in parts["train"] if example.text == "no"]
    np.testing.assert_allclose(wanted.audio / 32768, trees.tone(10, 16000, 1.0), rtol=0, atol=1.1 / 32768)


def test_spoken_digits_are_words_and_their_official_test_set_is_test(corpora):
    found = {split: rows(corpora, "hra/spoken_digit", split) for split in ("train", "validation", "test", "all")}
    assert found["test"]["1_theo_4.wav"] == ("one", {"speaker": "theo"})
    assert {int(name.split(".")[0].split("_")[2]) for name in found["test"]} == {0, 1, 2, 3, 4}
    assert len(found["all"]) == 48


@pytest.mark.parametrize("name", ["hra/vctk/mic1", "hra/ljspeech", "hra/spoken_digit"])
def test_splits_that_the_source_lacks_have_every_example_once(corpora, name):
    everything = rows(corpora, name, "all")
    parts = [rows(corpora, name, split) for split in ("train", "validation", "test")]
    assert sum(map(len, parts)) == len(everything) and {key for part in parts for key in part} == set(everything)
    assert min(map(len, parts)) > 0
    if name != "hra/spoken_digit":
        texts = [{text for text, _ in part.values()} for part in parts]
        assert not (texts[0] & texts[1] or texts[0] & texts[2] or texts[1] & texts[2])


def test_sounds_that_cannot_be_read_are_named_and_left_out(corpora):
    report = corpora.reports["hra/spoken_digit"].to_json()["utterances"]["undecodable_audio"]
    assert [(Path(row["name"]).name, row["detail"]) for row in report] == [
        ("7_jackson_0.wav", "Format not recognised."),
        ("8_jackson_20.wav", "it has 16000 Hz; the corpus has 8000 Hz"),
    ]
    again = DataReport()
    corpora.examples("hra/spoken_digit", "all", again)
    left = [f"hra/spoken_digit/all: {name}" for name in ("7_jackson_0.wav", "8_jackson_20.wav", "9_jackson_20.wav")]
    assert sorted(again.reasons()) == left and again.counts()["empty_audio"] == 3


def test_what_a_killed_process_has_left_half_prepared_is_removed(corpora):
    assert sorted(path.name for path in (corpora.folder / "spoken_digit").iterdir()) == ["1.0.9"]


def test_a_corpus_that_another_process_prepares_is_not_touched(tmp_path):
    half = tmp_path / "ljspeech" / "incomplete.ABCDEF_1.1.1"
    half.mkdir(parents=True)
    program = "import sys; from hra_jax.storage import locks\n"
    program += "with locks.hold(sys.argv[1], 'prepare'):\n print(flush=True)\n input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, half.parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="prepare"):
            prepared.prepare("hra/ljspeech", tmp_path, report=DataReport())
        other.communicate(b"\n")
    assert half.is_dir()


@pytest.mark.parametrize("name", TREES)
def test_the_numbers_of_rows_are_those_that_tensorflow_datasets_reads(corpora, name):
    import tensorflow_datasets as tfds

    found = prepared.find(name, corpora.folder)
    builder = tfds.builder_from_directory(found.folder)
    expected = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert prepared.sizes(name, corpora.folder) == expected and min(expected.values()) > 0


def test_a_corpus_that_is_prepared_is_not_downloaded_again(corpora):
    report = DataReport()
    assert prepared.prepare("hra/ljspeech", corpora.folder, report=report).version == "1.1.1"


def test_an_audio_file_that_is_missing_ends_the_preparation_of_files_that_are_kept_with_a_line_that_names_it(tmp_path):
    archives = trees.librispeech(tmp_path / "tree", rows=1)
    (gone,) = archives["dev_clean"].rglob("*.flac")
    gone.unlink()
    with trees.downloaded(archives), pytest.raises(UserError) as raised:
        prepared.prepare("hra/librispeech/lazy_decode", tmp_path / "D", report=DataReport())
    assert gone.name in str(raised.value) and "cannot be prepared" in str(raised.value)
    assert prepared.find("hra/librispeech/lazy_decode", tmp_path / "D") is None


def test_a_table_that_is_missing_or_has_a_row_too_short_ends_the_preparation_with_a_line(tmp_path):
    found = trees.ljspeech(tmp_path / "tree", rows=1)
    table = found / "LJSpeech-1.1" / "metadata.csv"
    for content, named in (("LJ001-0001|only a text\n", "ValueError"), (None, "metadata.csv")):
        table.unlink() if content is None else table.write_text(content)
        with trees.downloaded(found), pytest.raises(UserError) as raised:
            prepared.prepare("hra/ljspeech", tmp_path / "D", report=DataReport())
        assert f"hra/ljspeech cannot be prepared in {tmp_path}/D: " in str(raised.value) and named in str(raised.value)


def test_what_others_have_prepared_as_array_records_is_read_as_well(corpora, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("spoken_digit", data_dir=tmp_path, file_format="array_record")
    found = corpora.downloads / "digits"
    with trees.downloaded(found), sound_reader.in_place_of_pydub(8000, DataReport()):
        builder.download_and_prepare()
    ours = {example.id: example for example in corpora.examples("hra/spoken_digit", "all")}
    theirs = list(registry.examples("hra/spoken_digit", "all", data_dir=str(tmp_path)))
    assert {example.id for example in theirs} == set(ours)
    for example in theirs:
        np.testing.assert_array_equal(example.audio, ours[example.id].audio)
        assert (example.text, example.tags) == (ours[example.id].text, ours[example.id].tags)


def test_what_is_prepared_here_is_read_by_the_tasks_that_users_of_seqio_have(corpora):
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds

    def canonical(dataset):
        kept = {"audio": "speech", "text": "text", "id": "id", "speaker": "speaker_id"}
        return dataset.map(lambda row: {name: row[field] for name, field in kept.items()})

    feature = seqio.Feature(seqio.PassThroughVocabulary(size=0), add_eos=False, dtype=tf.string, rank=0)
    seqio.TaskRegistry.add(
        "librispeech_of_a_user",
        source=seqio.TfdsDataSource(
            tfds_name="librispeech/lazy_decode:2.1.2",
            tfds_data_dir=str(corpora.folder),
            splits={"train": "train_clean100", "validation": "dev_clean[:50%]"},
            decoders={"speech": tfds.decode.SkipDecoding()},
        ),
        preprocessors=[canonical],
        output_features={"audio": feature, "text": feature},
    )
    ours = {row.id: row for row in corpora.examples("hra/librispeech/lazy_decode", "train_clean100")}
    theirs = list(registry.examples("librispeech_of_a_user", "train", data_dir=""))
    assert {row.id for row in theirs} == set(ours)
    for row in theirs:
        assert (row.audio, row.text.lower()) == (ours[row.id].audio, ours[row.id].text)
        assert row.tags == {"speaker": int(ours[row.id].tags["speaker"])}
    assert len(list(registry.examples("librispeech_of_a_user", "validation", data_dir=""))) == 1


# --- What goes wrong --------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(corpora, tmp_path) -> Path:
    """The folder of one prepared corpus, to be damaged."""
    shutil.copytree(corpora.folder / "ljspeech", tmp_path / "ljspeech")
    return tmp_path / "ljspeech" / "1.1.1"


def failure(copy, split="all") -> str:
    with pytest.raises(UserError) as raised:
        list(registry.examples("hra/ljspeech", split, data_dir=str(copy.parents[1])))
    return str(raised.value)


def record_file(copy) -> Path:
    (path,) = copy.glob("*.tfrecord-*")
    return path


def test_a_corpus_that_is_not_prepared_says_what_prepares_it(tmp_path):
    command = f"python -m hra_jax.data.corpora prepare hra/ljspeech --data_dir {tmp_path}"
    with pytest.raises(UserError) as raised:
        list(registry.examples("hra/ljspeech", "train", data_dir=str(tmp_path)))
    assert str(raised.value) == f"hra/ljspeech is not prepared in {tmp_path}; {command}"


def test_a_flipped_bit_is_told_with_the_folder(copy):
    path = record_file(copy)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert f"{copy} cannot be read: DataLossError" in failure(copy) and "prepare it again" in failure(copy)


def test_a_truncated_file_is_told_with_the_folder(copy):
    path = record_file(copy)
    path.write_bytes(path.read_bytes()[:1000])
    assert f"{copy} cannot be read" in failure(copy)


def test_a_file_that_lacks_rows_is_told_with_the_folder(copy):
    record_file(copy).write_bytes(b"")
    assert f"{copy} cannot be read" in failure(copy) and "prepare it again" in failure(copy)


def test_a_file_that_is_missing_is_told_with_the_folder(copy):
    record_file(copy).unlink()
    assert f"{copy} cannot be read" in failure(copy)


def test_a_description_that_is_damaged_is_told_with_the_folder(copy):
    (copy / "features.json").write_text("{")
    assert f"{copy} is damaged" in failure(copy)


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"splits": [3]}', '{"splits": [{"name": "a", "shardLengths": ["x"]}]}']
)
def test_a_list_of_splits_that_is_damaged_is_told_with_its_file(copy, content):
    (copy / "dataset_info.json").write_text(content)
    with pytest.raises(UserError, match="dataset_info.json"):
        prepared.sizes("hra/ljspeech", copy.parents[1])


def test_shards_of_another_version_than_the_one_that_is_prepared_are_told(copy):
    source, folder = "seqio:hra/ljspeech/all", str(copy.parents[1])
    items = cache.items_of(source, data_dir=folder, modules=(), report=DataReport())
    made = registry.shards_folder("hra/ljspeech", "all", folder)
    cache.cache(items, made, settings=cache.ShardSettings(), report=DataReport())
    assert [part.folder for part in registry.expand(source, data_dir=folder)] == [made]
    copy.rename(copy.with_name("1.1.2"))
    with pytest.raises(UserError, match="are of another version of hra/ljspeech than the one that is prepared in"):
        registry.expand(source, data_dir=folder)
    shutil.rmtree(copy.with_name("1.1.2"))
    assert [part.folder for part in registry.expand(source, data_dir=folder)] == [made]


def test_the_newest_version_that_is_prepared_is_read(copy):
    older = copy.with_name("1.0.9")
    shutil.copytree(copy, older)
    (copy.with_name("1.10.0")).mkdir()  # holds nothing yet
    (copy.with_name("incomplete.ABC_2.0.0")).mkdir()
    assert prepared.find("hra/ljspeech", copy.parents[1]) == prepared.Found(copy, "1.1.1")


# --- Sounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [("WAV", "PCM_U8"), ("WAV", "PCM_24"), ("WAV", "DOUBLE"), ("FLAC", "PCM_16")])
def test_sounds_of_all_depths_become_16_bits(kind):
    wanted, buffer = trees.tone(3, 8000), io.BytesIO()
    soundfile.write(buffer, wanted, 8000, format=kind[0], subtype=kind[1])
    found = sound_reader.read(buffer.getvalue(), 8000)
    step = 1 / 128 if kind[1] == "PCM_U8" else 1 / 32768
    np.testing.assert_allclose(found[:, 0] / 32768, wanted, rtol=0, atol=step)


def test_several_channels_become_their_mean():
    stereo = np.asarray([[100, 300], [-5, -7], [32767, 32767]], np.int16)
    one = sound_reader.Sound(stereo).set_channels(1)
    assert one.channels == 1 and one.get_array_of_samples().tolist() == [200, -6, 32767]


def test_pydub_is_as_it_was_once_a_corpus_is_prepared():
    import tensorflow_datasets as tfds

    if importlib.util.find_spec("pydub") is None:
        with pytest.raises(ImportError):
            _ = tfds.core.lazy_imports.pydub
        with sound_reader.in_place_of_pydub(8000, DataReport()):
            assert tfds.core.lazy_imports.pydub.AudioSegment.from_file(io.BytesIO(b"x")).channels == 1
        with pytest.raises(ImportError):
            _ = tfds.core.lazy_imports.pydub
