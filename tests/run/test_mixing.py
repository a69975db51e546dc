"""What a run tells of its mixture, and that a mixture of groups goes on exactly, whoever stopped it."""

import json
import re
import signal
import types

import pytest
from reference import launching
from reference import micro as world
from reference.accents import table_of
from reference.launching import SETTINGS, TRAIN, same_losses

from hra_jax.data.batching import BatchSettings
from hra_jax.data.groups import parts_of
from hra_jax.data.report import DataReport
from hra_jax.run import mixing

pytestmark = pytest.mark.optimised  # runs here are compared with commands, which are optimised


class _Written(list):
    def write(self, step, scalars):
        self.append((step, scalars))


def _run(table, steps=4, **settings):
    layout = types.SimpleNamespace(table=table, parts=parts_of(table, **settings))
    return types.SimpleNamespace(
        layout=layout, settings=types.SimpleNamespace(steps=steps, seed=0), report=DataReport()
    )


def test_before_the_first_step_tasks_are_named_that_the_steps_will_hardly_draw(capsys):
    table = table_of(("a", "proportional", ["x"] * 600), ("b", 0.001, ["y"] * 2))
    batch = BatchSettings(seconds=8.0, buckets=(1.0,), max_tasks=9)
    mixing.foresee(_run(table), batch)
    printed = capsys.readouterr().out
    assert "mixture of 2: from 0.0% b (2 utterances, 0 times through) to 100.0% a (600 utterances, " in printed
    assert "4 steps draw about 32 of 602 utterances; 2 of 5 tasks will hardly be among them: 'b0', 'b1'; " in printed
    assert "more steps, higher rates, data.groups with a higher data.temperature" in printed
    table = table_of(("a", "proportional", ["x"] * 600), ("b", "proportional", ["y"] * 2))
    mixing.foresee(_run(table, groups="accent", temperature=1e6, steps=40), batch)
    assert "hardly" not in capsys.readouterr().out


def test_at_the_end_tasks_that_were_never_drawn_are_named_and_stored(capsys):
    run = _run(table_of(("a", "proportional", ["x"] * 600), ("b", 0.001, ["y"] * 2)))
    never = mixing.undrawn(run, [32, 0])
    mixing.tell_drawn(run, [32, 0], never)
    printed = capsys.readouterr().out
    assert "2 of 5 tasks were never drawn: 'b0', 'b1'; more steps, " in printed
    assert re.search(r"a +│ +600 │ +100\.0% │ +100\.0% │ +0\.0533", printed)
    stored = run.report.to_json()["mixture"]
    assert stored["tasks_never_drawn"] == ["b0", "b1"] and stored["references"] == 32
    again = DataReport()
    again.merge(json.loads(json.dumps(run.report.to_json())))
    assert again.mixture is None  # other processes know it themselves


def test_the_numbers_of_a_mixture_go_into_the_metrics_and_those_of_one_source_do_not():
    writer = _Written()
    run = _run(table_of(("a", "proportional", ["x"] * 9 + ["y"])), groups="accent", temperature=2.0)
    mixing.note(run, [6, 2], writer, 5)
    assert writer == [
        (5, {"data/asked/x": 0.75, "data/asked/y": 0.25, "data/drawn/x": 0.75, "data/drawn/y": 0.25}),
    ]
    mixing.note(_run(table_of(("a", "proportional", ["x"] * 9))), [8], writer, 5)
    assert len(writer) == 1


def test_of_many_groups_the_table_has_the_most_and_the_least_drawn(capsys):
    run = _run(table_of(("a", "proportional", [f"accent {i}" for i in range(100)])), groups="accent")
    mixing.tell_drawn(run, list(range(100)), [])
    printed = capsys.readouterr().out
    assert printed.count("│ accent ") + printed.count("┃ accent ") == 20
    assert "80 more lie between them; data_report.json has them all" in printed


@pytest.fixture
def mixed(micro, tmp_path):
    """A run of endless steps on two manifests, in whose three groups one recording is alone in its own."""
    rows = world.read_manifest(micro.data / "train.jsonl")
    accents = ["rare", *["plain"] * 6, *["other"] * 5]
    for row, accent in zip(rows, accents, strict=True):
        row |= {"audio_filepath": str(micro.data / row["audio_filepath"]), "accent": accent}
    for name, part in (("many", rows[:9]), ("few", rows[9:])):
        world.write_manifest(tmp_path / f"{name}.jsonl", part)
    sources = tuple((name, str(tmp_path / f"{name}.jsonl"), "proportional") for name in ("many", "few"))
    settings = {"steps": 3000, "batch__multiple": 6, "batch__seconds": 6.0, "data__sources": sources}
    return micro.config(**SETTINGS | settings, data__groups="accent", data__temperature=3.0)


@pytest.mark.slow(minutes=1)
def test_a_mixture_of_groups_that_is_killed_goes_on_with_other_processes_as_if_nothing_had_been(
    mixed, tmp_path, command_env
):
    file, workdir = world.write_config(tmp_path / "c.py", mixed), tmp_path / "W"
    words = [TRAIN, "--config", file, "--workdir", workdir]
    with launching.Launched(words, folder=tmp_path / "killed", env=command_env, processes=3, devices=2) as launched:
        launched.until(lambda: (workdir / "checkpoints" / "4").is_dir() and launching.logged_losses(workdir).get(5))
        launched.signal(signal.SIGKILL, 1)
        assert launched.wait(60) == 1, launched.said()
    steps = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()) + 5
    words += [f"--config.steps={steps}"]
    done = launching.run(words, folder=tmp_path / "on", env=command_env, processes=2, devices=3)
    mixed.steps = steps
    whole = world.train(mixed, tmp_path / "whole", devices=6)
    same_losses(world.losses(workdir), world.losses(whole.workdir))
    positions, reports, metrics = [], [], []
    for folder in (workdir, whole.workdir):
        positions.append(json.loads((folder / "checkpoints" / str(steps) / "position" / "metadata").read_text()))
        reports.append(json.loads((folder / "data_report.json").read_text())["mixture"])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        metrics.append([line for line in lines if "data/drawn/rare" in line][-1])
    assert positions[0] == positions[1] and reports[0] == reports[1] and metrics[0] == metrics[1]
    parts = positions[0]["parts"]
    assert {name: rows for name, (rows, *_) in parts.items()} == {"other": 5, "plain": 6, "rare": 1}
    assert any(drawn % rows for rows, drawn, _ in parts.values())
    # One recording in twelve, drawn three times as often.
    assert metrics[0]["data/asked/rare"] == pytest.approx(1 / (1 + 5 ** (1 / 3) + 6 ** (1 / 3)))
    assert reports[0]["references"] == positions[0]["consumed"] and reports[0]["tasks_never_drawn"] == []
    for printed in (done.printed, whole.printed):
        assert re.search(r"mixture of 3: from 2\d\.\d% rare \(1 utterances, ", printed)
        assert re.search(r"rare +│ +1 │ +2\d\.\d% │", printed)
