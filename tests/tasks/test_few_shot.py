"""Heads of held-out tasks: one run, equally many updates for all, and an adapter of their own."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from etils import epath
from reference import micro as world

from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import config_from_json
from hra_jax.data.utterance import Utterance
from hra_jax.errors import UserError
from hra_jax.evaluation.shots import Head
from hra_jax.storage.trees import flatten
from hra_jax.tasks import few_shot

SETTINGS = {
    "steps": 3,
    "batch.seconds": 4.0,
    "batch.buckets": (1.0,),
    "augment.noise_probability": 0.0,
    "augment.speed": 0.0,
    "augment.warp": 0.0,
    "remat": "none",
    "data.threads": 1,
    "checkpoint.every_steps": 100,
}


@pytest.fixture
def heads(micro):
    rows = world.read_manifest(micro.data / "validation.jsonl")
    found = {}
    for row in rows:
        path = str(micro.data / row["audio_filepath"])
        utterance = Utterance(path, row["duration"], row["text"], tags={"speaker": row["speaker"]}, key=path)
        found.setdefault(row["speaker"], []).append(utterance)
    return [
        Head(f"new {name}", shots, draw, tuple(found[name][::step][:shots]))
        for name in ("ann", "bob")
        for shots in (1, 2)
        for draw, step in ((1, 1), (2, -1))
    ]


def test_a_manifest_has_a_line_for_every_utterance_of_every_head(heads):
    rows = [json.loads(line) for line in few_shot.manifest_of(heads).splitlines()]
    assert [row["task"] for row in rows] == [head.name for head in heads for _ in head.support]
    assert {"audio_filepath", "duration", "text", "speaker"} <= rows[0].keys()
    segment = dataclasses.replace(heads[0].support[0], offset=1.5)
    (line,) = few_shot.manifest_of([heads[0]._replace(support=(segment,))]).splitlines()
    assert json.loads(line)["offset"] == 1.5


def test_heads_that_were_trained_on_other_utterances_are_not_taken_for_these(heads, tmp_path):
    few_shot.check_same_heads(tmp_path / "absent", heads)
    (tmp_path / "manifest.jsonl").write_text(few_shot.manifest_of(heads))
    (tmp_path / "config.json").write_text("{}")

    def changed(**fields):
        first = heads[0].support[0]
        return [heads[0]._replace(support=(dataclasses.replace(first, **fields),)), *heads[1:]]

    moved = f"/elsewhere/{heads[0].support[0].audio_filepath.rsplit('/', 1)[-1]}"
    few_shot.check_same_heads(tmp_path, changed(audio_filepath=moved, key=moved))
    for other in (changed(text="another"), changed(offset=0.1), changed(audio_filepath="/elsewhere/b.wav"), heads[:-1]):
        with pytest.raises(UserError, match="holds heads that were trained on other utterances; remove it, or give"):
            few_shot.check_same_heads(tmp_path, other)


@pytest.mark.parametrize(
    "settings, message",
    [({"optimizer.lr": 1}, "few: unknown config key 'optimizer.lr'"), ({"steps": 0}, "config.steps")],
)
def test_a_setting_that_is_not_allowed_is_one_line(trained, heads, tmp_path, micro, settings, message):
    with pytest.raises(UserError, match=message):
        few_shot.train_heads(
            str(trained.workdir / "adapter"), heads, tmp_path / "W", backbone=micro.backbone, settings=settings
        )
    assert not (tmp_path / "W").exists()


@pytest.mark.slow(minutes=0.5)
def test_all_heads_have_exactly_as_many_updates_and_the_adapter_stays_bit_for_bit(trained, heads, micro, tmp_path):
    world.use_devices(monkeypatch := pytest.MonkeyPatch(), 1)
    start, workdir = str(trained.workdir / "adapter"), tmp_path / "W"
    settings = SETTINGS | {"batch.multiple": 1}
    try:
        for _ in range(2):  # the second finds everything there
            assert few_shot.train_heads(start, heads, workdir, backbone=micro.backbone, settings=settings) == 0
    finally:
        monkeypatch.undo()
    before, after = read_adapter(start), read_adapter(workdir / "adapter")
    names = sorted(head.name for head in heads)
    assert list(after.tasks) == [*before.tasks, *names]
    for name, tree in before.tasks.items():
        for path, leaf in flatten(tree).items():
            np.testing.assert_array_equal(flatten(after.tasks[name])[path], leaf)
    config = config_from_json((workdir / "config.json").read_text())
    assert config.steps >= 3 and config.data.draw == "tasks" and config.adapter.new_task == "mean"
    counts = _updates(workdir, len(before.tasks), names)
    assert counts == dict.fromkeys(names, 3)
    few_shot.keep_heads(workdir, heads[:2], tmp_path / "kept")
    kept = read_adapter(tmp_path / "kept")
    assert list(kept.tasks) == [head.name for head in heads[:2]]
    rows = [flatten(after.tasks[name]) for name in names]
    for first, second in itertools.combinations(rows, 2):
        assert any(not np.array_equal(first[path], second[path]) for path in first)


def _updates(workdir, first, names):
    """How many updates each head has had, as the last checkpoint says."""
    from hra_jax.run.workdirs import CHECKPOINTS
    from hra_jax.training.checkpoints import Checkpoints

    folder = epath.Path(workdir) / CHECKPOINTS
    with Checkpoints(folder, keep_latest=1, keep_best=0, every_steps=1, finite=True, read_only=True) as checkpoints:
        found = {}
        for ids, rows in checkpoints.rows(checkpoints.resolve("last"), "bank"):
            found |= {int(number): int(count) for number, count in zip(ids, rows["count"], strict=True)}
    return {name: found[first + at] for at, name in enumerate(names)}
