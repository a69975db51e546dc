"""The benchmarks: how sides are timed and methods are compared, and that what is committed follows from its cells."""

import contextlib
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from hra_jax.evaluation import shots
from hra_jax.evaluation.bootstrap import Sample
from hra_jax.text.vocabularies import CharacterVocabulary

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def harness(monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_harness", FOLDER / "harness.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_LEAST_SECONDS", 0.0)
    return module


def test_the_sides_take_turns(harness, monkeypatch):
    monkeypatch.setattr(harness, "FOREIGN_SHARE", float("inf"))
    called = []
    timings = harness.interleave(
        {side: lambda side=side: called.append(side) or jnp.ones(2) for side in "ab"}, samples=4
    )
    assert called == list("aabb") + list("ab") * 4
    assert [len(timing.samples) for timing in timings.values()] == [4, 4]


def test_samples_during_which_others_were_busy_are_dropped(harness, monkeypatch):
    shares = iter([0.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(harness, "sample", lambda function, calls: (1.0, next(shares)))
    timings = harness.interleave({"a": lambda: jnp.ones(1), "b": lambda: jnp.ones(1)}, samples=2)
    assert [(len(timing.samples), timing.dropped) for timing in timings.values()] == [(2, 1), (2, 1)]


def test_a_machine_that_is_never_quiet_is_an_error_and_no_number(harness, monkeypatch):
    monkeypatch.setattr(harness, "sample", lambda function, calls: (1.0, 0.9))
    with pytest.raises(RuntimeError, match="2 undisturbed samples"):
        harness.interleave({"a": lambda: jnp.ones(1)}, samples=2)


def test_the_meter_sees_other_processes_and_not_this_one(harness):
    before = harness._foreign_seconds()
    np.linalg.svd(np.random.default_rng(0).normal(size=(400, 400)))
    own = harness._foreign_seconds() - before
    start = os.times()
    subprocess.run([sys.executable, "-c", "for i in range(10**7): pass"], check=True)
    seconds = os.times().children_user - start.children_user
    assert harness._foreign_seconds() - before - own >= 0.8 * seconds > 0


def test_the_report_holds_every_sample_and_where_they_were_taken(harness, tmp_path, capsys):
    samples = {"a": [0.1, 0.2, 0.4], "b": [0.3, 0.3, 0.9]}
    groups = {"pair": {side: harness.Timing(list(values)) for side, values in samples.items()}}
    harness.report("name", groups, str(tmp_path / "out.json"))
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["benchmark"] == "name" and found["packages"]["jax"] and found["cpu"] and found["devices"]
    for side, values in samples.items():
        entry = found["timings"]["pair"][side]
        assert entry["samples_s"] == values and entry["median_s"] == statistics.median(values)
    printed = capsys.readouterr().out
    assert "pair: b" in printed and "1.50" in printed


@pytest.mark.slow(minutes=0.5)
def test_all_sides_of_the_input_pipeline_go_through_the_same_audio(benchmark, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is one of the sides")
    module = benchmark("input_pipeline")
    corpus = module.Corpus(module.epath.Path(tmp_path), 8000, (0.5, 1.0), 4.0)
    random, sizes = np.random.default_rng(0), [2400 + 400 * number for number in range(12)]
    rows = [{"speaker": f"s{number % 2}", "text": "one"} for number in range(len(sizes))]
    module.write(corpus, rows, [0.1 * random.standard_normal(size).astype(np.float32) for size in sizes])
    with contextlib.ExitStack() as opened:
        for name, forms in module.sides_of(corpus, opened).items():
            for form, function in forms.items():
                seconds, most = [function(), function()], sum(sizes) / 8000
                if name.startswith("TrainLoader"):  # which ends with a whole batch
                    assert all(most <= found <= most + corpus.batch_seconds for found in seconds), (name, form)
                else:
                    assert seconds == pytest.approx([most, most]), (name, form)
        assert all(len(found) == 2 and min(found) > 0 for found in module.rates({"a": function}, 2).values())


# --- Cells and what is said of them -----------------------------------------------------------------------------------


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark as its script does, with its neighbours beside it."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def cell(errors: dict[str, list[int]]) -> dict:
    """A cell with one-word utterances."""
    return {"tasks": {task: [[str(n), error, 1] for n, error in enumerate(row)] for task, row in errors.items()}}


def test_intervals_cover_speakers_who_differ(benchmark):
    cells = benchmark("cells")
    one_is_bad = [cell({"a": [1] * 40, "b": [0] * 40, "c": [0] * 40})]
    all_alike = [cell({name: [1] * 13 + [0] * 27 for name in "abc"})]
    ends = [cells.interval(cells.clustered_rates([group])[:, 0]) for group in (one_is_bad, all_alike)]
    wide, narrow = (high - low for low, high in ends)
    assert wide > 2 * narrow > 0


def test_intervals_cover_seeds_that_differ(benchmark):
    cells = benchmark("cells")
    good, bad = cell({"a": [0] * 40}), cell({"a": [1] * 40})
    assert cells.interval(cells.clustered_rates([[good, bad]])[:, 0]) == (0.0, 1.0)
    assert cells.interval(cells.clustered_rates([[good, good]])[:, 0]) == (0.0, 0.0)


def test_methods_share_speakers_and_utterances_of_a_resample(benchmark):
    cells = benchmark("cells")
    errors = {"a": [1, 0, 1, 0, 0] * 8, "b": [0, 0, 0, 1, 0] * 8}
    assert cells.difference_of([cell(errors)], [cell(errors)]) == {
        "difference": 0.0, "low": 0.0, "high": 0.0, "verdict": "-",
    }  # fmt: skip
    worse = {"a": [1] * 40, "b": [1] * 40}
    assert cells.difference_of([cell(errors)], [cell(worse)])["verdict"] == "worse"
    with pytest.raises(ValueError, match="other tasks"):
        cells.clustered_rates([[cell({"a": [1]})], [cell({"b": [1]})]])


def test_of_learning_rates_that_tie_none_at_the_edge_is_taken(benchmark):
    compare = benchmark("compare_methods")
    tried = [{"learning_rate": rate, "validation": value} for rate, value in ((1, 0.1), (2, 0.1), (4, 0.2), (8, 0.1))]
    assert compare.best_of(tried)["learning_rate"] == 2
    assert compare.best_of([{**cell, "validation": cell["learning_rate"]} for cell in tried])["learning_rate"] == 1


def test_the_committed_comparison_follows_from_its_cells(benchmark, tmp_path):
    compare, cells_lib = benchmark("compare_methods"), benchmark("cells")
    committed = json.loads((FOLDER / "results" / "compare_methods.json").read_text())["rows"]
    cells = cells_lib.Cells(str(FOLDER / "results" / "compare_methods"), str(tmp_path), minutes=1e-9)
    assert compare.summary({method: compare.group(cells, method) for method in compare.METHODS}) == committed


def test_the_committed_curves_of_held_out_speakers_follow_from_the_counts_of_their_heads():
    committed = json.loads((FOLDER / "results" / "fsdd_heldout.json").read_text(encoding="utf-8"))
    held_out = [name for names in committed["held_out"] for name in names]
    for found in committed["by_updates"].values():
        assert sorted(held_out) == list(found["tasks"]) and len(held_out) == 6
        by_shots = [{} for _ in found["shots"]]
        for name, points in found["tasks"].items():
            for place, (k, point) in enumerate(zip(found["shots"], points, strict=True)):
                draws = range(1, found["draws"] + 1) if k else [0]
                counts = np.array([found["counts"][shots.head_name(name, k, draw)] for draw in draws])
                assert counts.shape == (len(draws), 50, 2) and (counts[:, :, 1] == counts[0, :, 1]).all()
                # A speaker is one block: utterances are resampled alone.
                by_shots[place][name] = Sample(counts[:, :, 0].T, counts[0, :, 1], None, (), 1)
                mine = {name: by_shots[place][name]}
                assert shots.curve_point(k, mine, samples=committed["bootstrap"]).to_json() == point
        for k, all_tasks, point in zip(found["shots"], by_shots, found["all"], strict=True):
            assert shots.curve_point(k, all_tasks, samples=committed["bootstrap"]).to_json() == point


def test_the_committed_page_on_tpus_follows_from_its_cells(benchmark):
    memory = benchmark("tpu_memory")
    folder = FOLDER / "results" / "tpu_memory"
    done = {name: json.loads((folder / f"{memory.file_name(name)}.json").read_text()) for name in memory.all_cells()}
    assert memory.page(done) == (FOLDER / "results" / "tpu_memory.md").read_text()


@pytest.mark.slow(minutes=1)
def test_many_utterances_become_a_table_in_little_time_and_memory(benchmark, tmp_path):
    # The long form: HRA_TABLE_ROWS=1000000, whose bound on memory is the same.
    rows = int(os.environ.get("HRA_TABLE_ROWS", "200000"))
    table_rows = benchmark("table_rows")
    folder = epath.Path(tmp_path)
    table_rows.write_manifests(folder, rows=rows, speakers=100)
    table_rows.write_index(folder)
    found = {name: table_rows.in_a_process(folder / name) for name in ("train.jsonl", "shards")}
    print(found)
    for one in found.values():
        # With an object for each utterance it took 73 microseconds and 3 kB of each.
        assert one["cpu_seconds_in_all"] < 2 + rows * 30e-6 and one["peak_bytes"] < 1e9
    assert found["train.jsonl"]["note"] == found["shards"]["note"]


def test_eight_buckets_that_are_found_leave_a_ninth_of_padding_and_the_committed_shares_follow_from_the_lengths(
    benchmark, fsdd_dir
):
    padding = benchmark("padding")
    committed = json.loads((FOLDER / "results" / "padding.json").read_text(encoding="utf-8"))["padding"]
    sets = padding.drawn_lengths() | {"fsdd": padding.lengths_of(str(fsdd_dir))}
    for name, lengths in sets.items():
        found = padding.padding_of(lengths, (1.0,), padding.FRAMES.get(name, 0.04))["padding"]
        assert {str(number): share for number, share in found.items()} == pytest.approx(committed[name]["padding"])
    assert len(committed) == 4 and max(found["padding"]["8"] for found in committed.values()) <= 0.115


def test_errors_of_word_times_are_from_the_joint_and_from_the_silence_around_it(benchmark):
    module = benchmark("word_times")
    clip = np.concatenate([np.zeros(400), np.ones(800), np.zeros(200)])
    assert module.silence(clip, 8000, end=False) == pytest.approx(0.05)
    assert module.silence(clip, 8000, end=True) == pytest.approx(0.025)
    late, silent = np.array([-0.2, 0.0, 0.1, 0.3]), np.full(4, 0.05)
    found = module.Joints(late + 0.01, late, before=2 * silent, after=silent).errors(0.01)
    assert found["median_late_ms"] == 50.0
    assert found["boundary"] == {"median_ms": 150.0, "p95_ms": 285.0}
    assert found["boundary_outside_silence"]["median_ms"] == 75.0  # of 100, 0, 50 and 250 ms
    vocabulary = CharacterVocabulary()
    path = np.array([0, *vocabulary.encode("a"), 0, *vocabulary.encode(" "), *vocabulary.encode("bb")[:1], 0], np.int32)
    assert [module.first_label(path, vocabulary, number) for number in (0, 1)] == [1, 4]
