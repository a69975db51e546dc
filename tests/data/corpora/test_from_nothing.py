"""Public corpora from the folders that they unpack to, to an adapter that is trained on all of them and evaluated."""

import textwrap

import pytest
from reference import corpus_trees, prepared_trees
from reference import micro as world

from hra_jax.data import cache
from hra_jax.data.corpora import commands, registry
from hra_jax.data.report import DataReport
from hra_jax.storage.json_files import read_object

PREPARED = {
    "hra/librispeech/lazy_decode": prepared_trees.librispeech,
    "hra/xtreme_s/fleurs.cs_cz": prepared_trees.fleurs,
    "hra/vctk/mic1": prepared_trees.vctk,
    "hra/ljspeech": prepared_trees.ljspeech,
    "hra/speech_commands": prepared_trees.speech_commands,
    "hra/spoken_digit": prepared_trees.spoken_digit,
}
IMPORTED = {
    "hra/common_voice/ga-IE": (corpus_trees.common_voice, "train", "test"),
    "hra/tedlium/release3": (corpus_trees.tedlium, "train", "test"),
    "hra/libritts": (corpus_trees.libritts, "train_clean100", "dev_clean"),
    "hra/user_libri": (corpus_trees.user_libri, "train", "test"),
}
MODULE = """
    import io
    import numpy as np
    import seqio
    import soundfile
    import tensorflow as tf
    from hra_jax.data.corpora import registry

    def rows(split, shuffle_files):
        file = io.BytesIO()
        soundfile.write(file, np.random.default_rng(len(split)).uniform(-0.4, 0.4, 4800), 8000, format="FLAC")
        values = {"audio": [file.getvalue()] * 4, "sample_rate": [8000] * 4, "text": ["cab", "bed", "fad", "dad"]}
        values |= {"id": list("abcd") if split == "train" else list("efgh"), "tags": ['{"corpus": "mine"}'] * 4}
        return tf.data.Dataset.from_tensor_slices(values)

    seqio.TaskRegistry.add(
        "mine", source=seqio.FunctionDataSource(rows, splits=["train", "test"], num_input_examples={"train": 4}),
        output_features=registry.output_features(),
    )
    seqio.MixtureRegistry.add("mixed", [("mine", 3.0), ("hra/spoken_digit", 1.0)])
"""


def shards(source: str, data_dir: str, *, modules=()) -> int:
    """Writes the shards of a named source where a configuration looks for them; how many utterances they have."""
    report = DataReport()
    items = cache.items_of(source, data_dir=data_dir, modules=modules, report=report)
    folder = registry.shards_folder(*registry.name_and_split(source), data_dir)
    settings = cache.ShardSettings(sample_rate=world.RATE)
    return cache.cache(items, folder, settings=settings, report=report).utterances


@pytest.mark.slow(minutes=1.5)
def test_every_corpus_and_tasks_of_ones_own_are_trained_on_and_evaluated(micro, tmp_path, monkeypatch):
    folder = tmp_path / "D"
    for name, make in PREPARED.items():
        with prepared_trees.downloaded(make(tmp_path / "trees" / name)):
            commands.prepare(name, data_dir=str(folder))
    named = [(name, "train", "test") for name in PREPARED]
    for name, (make, train, test) in IMPORTED.items():
        make(tmp_path / "trees" / name)
        commands.prepare(name, data_dir=str(folder), source=str(tmp_path / "trees" / name))
        named.append((name, train, test))
    (tmp_path / "module_of_mine.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    named.append(("mine", "train", "test"))
    for name, *splits in named:
        for split in splits:
            assert shards(f"seqio:{name}/{split}", str(folder), modules=("module_of_mine",)) > 0, (name, split)

    # A task for each source: tags differ, so each has one that all of its utterances have.
    with_corpus = [row for row in named if row[0] in PREPARED or row[0] == "mine"]
    sources = (
        *((name, f"seqio:{name}/{train}", 1.0) for name, train, _ in with_corpus),
        ("mix", "seqio:mixed/train", 1.0),
    )
    rows = [("*", f"seqio:{name}/{test}", "corpus=*", "*") for name, _, test in with_corpus]
    config = micro.config(
        steps=3,
        data__dir=str(folder),
        data__sources=sources,
        data__modules=("module_of_mine",),
        data__task_tag="corpus",
        batch__max_tasks=8,
        batch__seconds=16.0,
        eval__suite=world.write_suite(tmp_path / "suite.py", tuple(rows)),
    )
    run = world.train(config, tmp_path / "W")
    results = read_object(run.workdir / "eval" / "suite" / "results.json")
    assert set(results["tasks"]) == {*(name.split("/")[1] for name in PREPARED), "mine"}

    speakers = [row for row in named if row[0] in IMPORTED]
    config = micro.config(
        steps=3,
        data__dir=str(folder),
        data__sources=tuple((name, f"seqio:{name}/{train}", "proportional") for name, train, _ in speakers),
        eval__suite=world.write_suite(
            tmp_path / "own.py",
            tuple((name.split("/")[1], f"seqio:{name}/{test}", "", "__mean__") for name, _, test in speakers),
        ),
        batch__max_tasks=8,
        batch__seconds=16.0,
        batch__buckets=(16.0,),
        eval__batch_seconds=16.0,
    )
    run = world.train(config, tmp_path / "X")
    results = read_object(run.workdir / "eval" / "own" / "results.json")
    assert set(results["tasks"]) == {name.split("/")[1] for name in IMPORTED}
