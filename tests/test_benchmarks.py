"""The harness of the benchmarks: sides take turns, disturbed samples are dropped, everything is written down."""

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
