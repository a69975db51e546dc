"""Names that stand for shards, and Tasks and Mixtures of a user's own module."""

import io
import json
import sys
import textwrap

import numpy as np
import pytest
import soundfile
from reference import micro as world
from reference import prepared_trees as trees

from hra_jax.data import shards, sources
from hra_jax.data.corpora import prepared, registry
from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation import suites
from hra_jax.run import read

MODULE = """
import functools
import io
import numpy as np
import seqio
import soundfile
import tensorflow as tf

PLAIN = seqio.PassThroughVocabulary(size=0)

def feature(dtype, rank=0):
    return seqio.Feature(PLAIN, add_eos=False, dtype=dtype, rank=rank)

def sound(number):
    file = io.BytesIO()
    soundfile.write(file, np.full(800, 0.01 * number, np.float32), 8000, format="FLAC")
    return file.getvalue()

def encoded(split, shuffle_files):
    rows = {
        "sound": [sound(number) for number in range(3)],
        "said": ["ONE", "", "three"],
        "who": ["anna", "bert", "čeněk"],
        "age": [20, 30, 40],
        "loud": [[1.0, 2.0]] * 3,
    }
    return tf.data.Dataset.from_tensor_slices(rows)

def canonical(dataset):
    return dataset.map(lambda row: {
        "audio": row["sound"], "text": tf.strings.lower(row["said"]), "speaker": row["who"], "age": row["age"],
        "loud": row["loud"],
    })

seqio.TaskRegistry.add(
    "encoded",
    source=seqio.FunctionDataSource(encoded, splits=["train", "test"], num_input_examples={"train": 300, "test": 3}),
    preprocessors=[canonical],
    output_features={"audio": feature(tf.string), "text": feature(tf.string)},
)

def samples(split, shuffle_files):
    rows = {
        "samples": np.arange(12, dtype=np.int16).reshape(3, 4), "sample_rate": [16000] * 3, "text": list("abc"),
        "id": ["x", "y", "z"], "tags": ['{"speaker": "anna", "noisy": true}'] * 3,
    }
    return tf.data.Dataset.from_tensor_slices(rows)

seqio.TaskRegistry.add(
    "samples",
    source=seqio.FunctionDataSource(samples, splits=["train"], num_input_examples={"train": 100}),
    output_features={"samples": feature(tf.int16, 1), "text": feature(tf.string)},
)
seqio.TaskRegistry.add(
    "textless",
    source=seqio.FunctionDataSource(encoded, splits=["train"]),
    output_features={"sound": feature(tf.string), "said": feature(tf.string)},
)
seqio.TaskRegistry.add(
    "failing",
    source=seqio.FunctionDataSource(lambda split, shuffle_files: 1 / 0, splits=["train"]),
    output_features={"audio": feature(tf.string)},
)
for number, rows in enumerate((100, 400, 2500)):
    seqio.TaskRegistry.add(
        f"part_{number}",
        source=seqio.FunctionDataSource(encoded, splits=["train"], num_input_examples={"train": rows}),
        preprocessors=[canonical],
        output_features={"audio": feature(tf.string), "text": feature(tf.string)},
    )
rate = functools.partial(seqio.mixing_rate_num_examples, temperature=2.0, maximum=900)
seqio.MixtureRegistry.add("numbers", [("part_0", 3.0), ("part_1", 1.0)])
seqio.MixtureRegistry.add("by_size", ["part_0", "part_1", "part_2"], default_rate=rate)
seqio.MixtureRegistry.add("nested", [("numbers", 2.0), ("part_2", 6.0)])
seqio.MixtureRegistry.add("unknown_size", ["textless"], default_rate=rate)
seqio.MixtureRegistry.add("silent", [("part_0", 1.0), ("part_1", 0.0)])
seqio.MixtureRegistry.add("of_corpora", [("hra/spoken_digit", 1.0), ("hra/ljspeech", 2.0)])
"""
NAME = "tasks_of_a_user"
GIVEN = f" --modules {NAME}"


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory) -> str:
    """A module of a user's on Python's path."""
    folder = tmp_path_factory.mktemp("module")
    (folder / f"{NAME}.py").write_text(textwrap.dedent(MODULE), encoding="utf-8")
    (folder / "broken_tasks.py").write_text("import seqio\nseqio.TaskRegistry.get('nobody')\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield NAME
    sys.path.remove(str(folder))


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    """Gives a folder of data in which these Tasks have shards, of so many rows."""

    def make(**rows: int) -> str:
        folders = {registry.shards_folder(name, "train", tmp_path): count for name, count in rows.items()}
        monkeypatch.setattr(shards, "is_shards", lambda path: str(path) in folders)
        monkeypatch.setattr(
            shards, "read_shards", lambda path, *, report: ([Utterance("a", 1.0, "b")] * folders[str(path)], [])
        )
        return str(tmp_path)

    return make


def failure(function, *arguments, **settings) -> str:
    with pytest.raises(UserError) as raised:
        found = function(*arguments, **settings)
        if not isinstance(found, list):
            list(found)
    return str(raised.value)


# --- Tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_of_sound_files_gives_its_texts_and_tags_and_names_what_has_no_text():
    report = DataReport()
    found = list(registry.examples("encoded", "train", data_dir="", modules=(NAME,), report=report))
    assert [(row.id, row.text, row.tags, row.sample_rate) for row in found] == [
        ("train/00000000", "one", {"speaker": "anna", "age": 20}, 0),
        ("train/00000002", "three", {"speaker": "čeněk", "age": 40}, 0),
    ]
    samples, rate = soundfile.read(io.BytesIO(found[1].audio), dtype="int16")
    assert rate == 8000 and samples.tolist() == [655] * 800
    assert report.reasons() == {"encoded/train: train/00000001": "no_text: there is no transcript"}


def test_a_task_of_samples_gives_them_with_their_rate_its_own_names_and_tags_as_json():
    found = list(registry.examples("samples", "train", data_dir="", modules=(NAME,)))
    np.testing.assert_array_equal([row.audio for row in found], np.arange(12).reshape(3, 4))
    assert {row.audio.dtype for row in found} == {np.dtype(np.int16)}
    assert [(row.id, row.sample_rate, row.text) for row in found] == [
        (name, 16000, text) for name, text in zip("xyz", "abc", strict=True)
    ]
    assert found[0].tags == {"speaker": "anna", "noisy": True}


@pytest.mark.parametrize(
    ("name", "split", "named"),
    [
        ("encodde", "train", "unknown Task or Mixture 'encodde'; did you mean 'encoded'?"),
        ("encoded", "trian", "encoded has no split 'trian'; did you mean 'train'?"),
        ("textless", "train", "textless/train gives age, loud, said, sound, who; needed: audio (the bytes of a sound"),
        ("failing", "train", "failing/train cannot be read: ZeroDivisionError"),
        ("numbers", "train", "numbers is a Mixture; allowed: one of its Tasks, part_0, part_1"),
        ("hra/ljspeeech", "train", "unknown corpus 'hra/ljspeeech'; did you mean 'hra/ljspeech'"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(name, split, named):
    assert named in failure(registry.examples, name, split, data_dir="D", modules=(NAME,))


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("no_such_module_at_all", "data.modules: 'no_such_module_at_all' cannot be imported: ModuleNotFoundError"),
        ("broken_tasks", "data.modules: 'broken_tasks' cannot be imported: ValueError: Provider name not registered"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_in_a_line(name, named):
    assert named in failure(registry.expand, "seqio:x/train", data_dir="D", modules=(name,))


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["seqio:", "seqio:encoded", "seqio:/train", "seqio:encoded/", "seqio:../x/train"])
def test_what_is_no_name_and_split_is_refused(source):
    assert f"{source!r} is no source; allowed: seqio:NAME/SPLIT" in failure(registry.expand, source, data_dir="D")


def test_a_name_needs_the_folder_of_its_shards():
    assert "needs data.dir, which is ''" in failure(registry.expand, "seqio:hra/ljspeech/train", data_dir="")


def test_shards_of_a_task_are_found_without_its_module(sharded):
    folder = sharded(task_of_nobody=3)
    found = registry.expand("seqio:task_of_nobody/train", data_dir=folder)
    assert found == [registry.Source("task_of_nobody", f"{folder}/shards/task_of_nobody/train", 1.0)]


def test_a_task_without_shards_says_what_makes_them(tmp_path):
    said = failure(registry.expand, "seqio:encoded/test", data_dir=str(tmp_path), modules=(NAME,))
    assert said.endswith(f"python -m hra_jax.data.cache --source seqio:encoded/test --data_dir {tmp_path}{GIVEN}")
    assert said.startswith(f"there are no shards of seqio:encoded/test in {tmp_path}/shards/encoded/test; ")


def test_a_corpus_says_first_what_prepares_it_and_then_what_makes_its_shards(tmp_path):
    said = failure(registry.expand, "seqio:hra/ljspeech/train", data_dir=str(tmp_path))
    assert said == prepared.not_prepared("hra/ljspeech", str(tmp_path))
    (tmp_path / "ljspeech" / "1.1.1").mkdir(parents=True)
    (tmp_path / "ljspeech" / "1.1.1" / "dataset_info.json").write_text("{}")
    said = failure(registry.expand, "seqio:hra/ljspeech/train", data_dir=str(tmp_path))
    assert said.endswith(f"; python -m hra_jax.data.cache --source seqio:hra/ljspeech/train --data_dir {tmp_path}")


def test_validated_sentences_of_common_voice_are_prepared_only_where_they_are_named(tmp_path):
    said = failure(registry.expand, "seqio:hra/common_voice/cs/validated", data_dir=str(tmp_path))
    prepare = f"prepare hra/common_voice/cs --source DOWNLOADED --data_dir {tmp_path}"
    assert said.endswith(f"{prepare} --splits validated")
    said = failure(registry.expand, "seqio:hra/common_voice/cs/train", data_dir=str(tmp_path))
    assert said.endswith(prepare)


def test_an_unknown_name_says_that_modules_register_names(tmp_path):
    said = failure(registry.expand, "seqio:nobody/train", data_dir=str(tmp_path))
    assert "unknown Task or Mixture 'nobody'" in said and "data.modules (--modules) names what registers" in said


# --- Mixtures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("numbers", {"part_0": 3.0, "part_1": 1.0}),
        # Sizes 100, 400 and 2,500, at most 900, to the power of 1/2.
        ("by_size", {"part_0": 10.0, "part_1": 20.0, "part_2": 30.0}),
        # The rate of a Mixture in a Mixture is shared out among its Tasks.
        ("nested", {"part_0": 1.5, "part_1": 0.5, "part_2": 6.0}),
    ],
)
def test_a_mixture_stands_for_its_tasks_and_their_rates_as_seqio_computes_them(sharded, name, rates):
    import seqio

    folder = sharded(part_0=1, part_1=1, part_2=1)
    found = registry.expand(f"seqio:{name}/train", data_dir=folder, modules=(NAME,))
    assert [part.task for part in found] == sorted(rates)
    shares = {part.task: part.share for part in found}
    assert shares == pytest.approx({task: rate / sum(rates.values()) for task, rate in rates.items()})
    mixture = seqio.MixtureRegistry.get(name)
    assert [part.share for part in found] == pytest.approx(
        np.asarray([mixture.get_rate(task) for task in mixture.tasks]) / mixture.total_rate
    )


@pytest.mark.parametrize(("rate", "total"), [(5.0, 5.0), ("proportional", 12.0)])
def test_a_mixture_becomes_a_source_for_each_task_and_their_rates_multiply(sharded, rate, total):
    folder = sharded(part_0=2, part_1=10)
    entries = [("mine", "seqio:numbers/train", rate)]
    found = sources.read_sources(entries, report=DataReport(), data_dir=folder, modules=(NAME,))
    assert [(one.name, len(one.utterances)) for one in found] == [("mine/part_0", 2), ("mine/part_1", 10)]
    assert [one.rate for one in found] == pytest.approx([0.75 * total, 0.25 * total])


def test_a_mixture_is_refused_where_tasks_take_turns(sharded):
    sources_of_it = (("mine", "seqio:numbers/train", "proportional"),)
    data = sources.DataSettings(dir=sharded(part_0=2, part_1=10), sources=sources_of_it, modules=(NAME,), draw="tasks")
    assert "a Mixture in data.sources has rates" in failure(read.training_sources, data, DataReport())


def test_a_task_keeps_its_rate(sharded):
    folder = sharded(part_0=2)
    for rate in (0.3, "proportional"):
        found = sources.read_sources([("mine", "seqio:part_0/train", rate)], report=DataReport(), data_dir=folder)
        assert [(one.name, one.rate) for one in found] == [("mine", rate)]


def test_where_no_folder_of_corpora_is_known_a_name_is_refused_with_the_folder_that_is_meant():
    said = failure(sources.read_source, "seqio:hra/ljspeech/train", report=DataReport())
    assert said.endswith("needed here: a manifest, or the folder of its shards, DATA/shards/hra/ljspeech/train")


def test_a_name_without_its_scheme_is_told_with_it():
    said = failure(sources.read_source, "hra/ljspeech/train", report=DataReport())
    assert said == "no manifest at hra/ljspeech/train; did you mean 'seqio:hra/ljspeech/train'?"


def test_a_suite_without_shards_says_what_makes_them_of_a_task_of_a_module(tmp_path):
    held = world.write_suite(tmp_path / "held.py", (("x", "seqio:encoded/test", "", "x"),))
    said = failure(suites.load_suite, held, data_dir=str(tmp_path), report=DataReport(), modules=(NAME,))
    assert said.endswith(f"--source seqio:encoded/test --data_dir {tmp_path}{GIVEN}")


def test_a_suite_takes_tasks_and_no_mixture(sharded, monkeypatch):
    folder = sharded(part_0=2)
    assert sources.located("seqio:part_0/train", data_dir=folder) == f"{folder}/shards/part_0/train"
    parts = [registry.Source("part_0", "a", 0.5), registry.Source("part_1", "b", 0.5)]
    monkeypatch.setattr(registry, "expand", lambda source, **others: parts)
    said = failure(sources.located, "seqio:numbers/train", data_dir=folder, key="suite 'x'")
    allowed = "seqio:part_0/train, seqio:part_1/train"
    assert said == f"suite 'x': seqio:numbers/train is a Mixture; allowed: its Tasks one by one, {allowed}"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("seqio:numbers/test", "no Task of numbers has the split 'test'; allowed: train"),
        ("seqio:by_size/train", "by_size: there are no shards of seqio:part_2/train in "),
        ("seqio:unknown_size/train", "a rate of the Mixture unknown_size cannot be computed: TypeError"),
        ("seqio:silent/train", "the rate of part_1 in the Mixture silent is 0.0; allowed: above 0"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_from_is_told_in_a_line(sharded, source, named):
    folder = sharded(part_0=1, part_1=1, textless=1)
    assert named in failure(registry.expand, source, data_dir=folder, modules=(NAME,))


# --- Corpora as seqio knows them --------------------------------------------------------------------------------------


def test_seqio_reads_a_corpus_by_its_name_as_this_library_does(tmp_path, monkeypatch):
    import seqio

    found = trees.spoken_digit(tmp_path / "tree", recordings=2, speakers=("theo",))
    with trees.downloaded(found):
        prepared.prepare("hra/spoken_digit", tmp_path / "D", report=DataReport())
    registry.import_modules((NAME,))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "D"))
    task = seqio.TaskRegistry.get("hra/spoken_digit")
    rows = list(task.get_dataset(split="test", shuffle=False).as_numpy_iterator())
    wanted = list(registry.examples("hra/spoken_digit", "test", data_dir=str(tmp_path / "D")))
    assert len(rows) == len(wanted) == 4
    for row, example in zip(rows, wanted, strict=True):
        samples, rate = soundfile.read(io.BytesIO(row["audio"]), dtype="int16")
        np.testing.assert_array_equal(samples, example.audio)
        assert rate == row["sample_rate"] == 8000
        assert (row["text"].decode(), row["id"].decode()) == (example.text, example.id)
        assert json.loads(row["tags"]) == example.tags
    mixture = seqio.get_mixture_or_task("of_corpora")
    assert [task.name for task in mixture.tasks] == ["hra/ljspeech", "hra/spoken_digit"]
    assert set(mixture.output_features) == set(registry.output_features())


def test_how_many_examples_a_corpus_has_is_known_from_its_shards_or_its_source(sharded, tmp_path, monkeypatch):
    import seqio

    registry.import_modules(())
    source = seqio.TaskRegistry.get("hra/ljspeech").source
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert source.num_input_examples("train") is None
    sharded(**{"hra/ljspeech": 7})
    assert source.num_input_examples("train") == 7
