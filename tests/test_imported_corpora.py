"""Corpora as they are downloaded, all the way: imported, sharded, trained on and scored, by commands of the pages."""

import json

import numpy as np
import pytest
from reference import corpus_trees
from reference import micro as world

pytestmark = pytest.mark.slow(minutes=1.5)

# What is trained on, and what is scored by which adapter.
RUNS = {
    "kaldi": ("train", "test", "speaker"),
    "librispeech": ("train_clean100", "test_clean", "speaker"),
    "libritts": ("train_clean100", "dev_clean", "speaker"),
    "user_libri": ("train", "test", "user"),
    "common_voice": ("train", "test", "locale"),
    "tedlium": ("train", "test", "speaker"),
    "audio_folder": ("train", "test", "speaker"),
    "nemo": ("train", "validation", "lang"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_corpus_is_imported_sharded_trained_on_and_scored(kind, commands, micro, tmp_path):
    train, test, tag = RUNS[kind]
    corpus, workdir = tmp_path / "corpus", tmp_path / "W"
    corpus_trees.TREES[kind](corpus)
    split = ["--split", "--tag=user"] if kind == "user_libri" else []
    status, _, printed = commands.run(["hra_jax.data.manifest", "import", str(corpus), f"--output={tmp_path}", *split])
    assert status == 0, printed
    source, shards = tmp_path / f"{train}.jsonl", tmp_path / "shards"
    words = [f"--source={source}", f"--output={shards}", "--sample_rate=8000", "--workers=1"]
    status, _, printed = commands.run(["hra_jax.data.cache", *words])
    assert status == 0, printed
    suite = world.write_suite(tmp_path / "own.py", (("all", str(tmp_path / f"{test}.jsonl"), "", "__mean__"),))
    config = micro.config(
        steps=3,
        data__sources=((kind, str(shards), 1.0),),
        data__task_tag=tag,
        batch__buckets=(1.6,),
        eval__suite=suite,
    )
    words = ["--config", world.write_config(tmp_path / "config.py", config), "--workdir", str(workdir)]
    status, _, printed = commands.run(["hra_jax.train", *words])
    assert status in (0, 4), printed
    assert np.isfinite(world.losses(workdir)).all() and len(world.losses(workdir)) == 3
    results = json.loads((workdir / "eval" / "own" / "results.json").read_text())
    rows = world.read_manifest(tmp_path / f"{test}.jsonl")
    assert results["tasks"]["all"]["utterances"] == len(rows), results
