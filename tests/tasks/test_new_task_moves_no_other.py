"""A seventh task beside six real speakers: what the six say does not move, to the last bit."""

import json

import numpy as np
import pytest
import soundfile

import hra_jax
from hra_jax import train
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import load_config
from hra_jax.data import synthesize
from hra_jax.tasks import commands


@pytest.mark.slow
@pytest.mark.optimised
def test_a_seventh_task_leaves_the_six_bit_identical_and_comes_back_from_an_export(fsdd_dir, tmp_path):
    config = load_config("fsdd").copy_and_resolve_references().unlock()
    config.steps, config.seed, config.eval.suite, config.eval.select_suite = 12, 3, "", ""
    config.batch.seconds, config.batch.multiple, config.data.dir = 20.0, 8, str(fsdd_dir)
    config.optimizer.warmup_steps, config.checkpoint.every_steps, config.export.step = 1, 100, "last"
    assert train.train(config.lock(), tmp_path / "six") == 0
    adapter = tmp_path / "six" / "adapter"
    rows = [json.loads(line) for line in (fsdd_dir / "test.jsonl").read_text().splitlines()]
    speakers = sorted({row["speaker"] for row in rows})
    assert len(speakers) == 6
    chosen = [[row for row in rows if row["speaker"] == name][number] for name in speakers for number in (0, 25)]
    waveforms = [soundfile.read(fsdd_dir / row["audio_filepath"], dtype="float32")[0] for row in chosen]
    names = [row["speaker"] for row in chosen]
    backbone = hra_jax.load_backbone("builtin:tiny")

    def log_probs(folder, tasks):
        # The same compiled shape before and after: the seventh takes a free slot.
        return hra_jax.load_adapter(folder, backbone, slots=8).log_probs(waveforms, sample_rate=8000, tasks=tasks)[0]

    before = log_probs(adapter, names)
    base = log_probs(adapter, ["__base__"] * len(names))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, base, strict=True))

    speech = synthesize.render("tiny-test", tmp_path / "tiny", progress=False)
    seven = tmp_path / "seven"
    manifest = str(speech / "train.jsonl")
    assert commands.add(str(adapter), "seventh", init="mean", manifest=manifest, output=str(seven), steps=6) == 0
    assert [*read_adapter(seven).tasks] == [*speakers, "seventh"]
    np.testing.assert_array_equal(log_probs(seven, names), before)
    new = log_probs(seven, ["seventh"] * len(names))
    assert np.abs(new - base).max() > 1e-2 and np.abs(new - before).max() > 1e-2

    commands.export_tasks(str(seven), "seventh", output=str(tmp_path / "alone"))
    commands.remove(str(seven), "seventh", speakers[2])
    assert "seventh" not in read_adapter(seven).tasks
    commands.import_tasks(str(seven), str(tmp_path / "alone"))
    commands.import_tasks(str(seven), str(adapter), tasks=[speakers[2]])
    np.testing.assert_array_equal(log_probs(seven, ["seventh"] * len(names)), new)
    np.testing.assert_array_equal(log_probs(seven, names), before)
