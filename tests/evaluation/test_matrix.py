"""Matrices: every adapter on the data of every task, what they show, and samples of many tasks."""

import json

import pytest

from hra_jax.errors import UserError
from hra_jax.evaluation import matrix
from hra_jax.evaluation.suites import Suite, SuiteTask


def suite_of(names, **adapters) -> Suite:
    """A suite of tasks that have adapters of their own, but for those that `adapters` says."""
    tasks = [SuiteTask(name, "m.jsonl", "speaker", name, adapters.get(name, name), ()) for name in names]
    return Suite("s", "basic", tuple(tasks), slices=("accent",))


def test_every_task_meets_every_adapter_once_and_those_without_an_adapter_none():
    crossed = matrix.cross(suite_of(("a", "b", "plain"), plain="__base__"), ["a", "b", "other"])
    assert sorted(crossed.pairs.values()) == [("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]
    tasks = {task.name: task for task in crossed.suite.tasks}
    for name, (task, adapter) in crossed.pairs.items():
        assert tasks[name].adapter_task == adapter and tasks[name].tag_value == task
    assert crossed.suite.name == "s_matrix" and not crossed.suite.slices and not crossed.left_out


def test_names_that_could_be_taken_for_each_other_stay_apart():
    names = ("a", "a with b", "b", "b with b")
    crossed = matrix.cross(suite_of(names), names)
    assert len(crossed.pairs) == len(set(crossed.pairs.values())) == 16


def test_of_many_tasks_the_same_sample_is_taken_each_time_and_told():
    names = [f"t{number}" for number in range(50)]
    crossed, again = (matrix.cross(suite_of(names), names) for _ in range(2))
    assert len(crossed.suite.tasks) == matrix.MOST**2 and crossed.left_out == 18
    assert crossed.pairs == again.pairs
    results = {"tasks": {name: {"metric": "wer", "wer": 0.5, "base_wer": 0.5} for name in crossed.pairs}}
    found = matrix.matrix_of(crossed, results, {name: name for name in names})
    assert "a sample of 32 tasks; 18 are left out" in matrix.remarks(found)


def test_a_suite_without_adapters_is_refused():
    with pytest.raises(UserError, match="suite 's': no task of it is recognised with an adapter of its own"):
        matrix.cross(suite_of(("a",), a="__mean__"), ["b"])


def test_confusion_and_harm_are_named_and_the_diagonal_is_marked():
    names = ("a", "b", "c")
    crossed = matrix.cross(suite_of(names), names)
    rates = {"a": (0.1, 0.3, 0.2), "b": (0.05, 0.2, 0.3), "c": (0.6, 0.7, 0.4)}
    results = {
        "tasks": {
            name: {"metric": "cer", "cer": rates[task][names.index(adapter)], "base_cer": 0.5}
            for name, (task, adapter) in crossed.pairs.items()
            if (task, adapter) != ("b", "c")  # that pair has no score
        }
    }
    found = matrix.matrix_of(crossed, results, {name: name for name in names})
    assert json.loads(json.dumps(found)) == found
    assert found["rates"] == [[0.1, 0.3, 0.2], [0.05, 0.2, None], [0.6, 0.7, 0.4]] and found["base"] == [0.5] * 3
    assert matrix.remarks(found) == [
        "task 'b': 5.0% with the adapter of 'a', 20.0% with its own",
        "worse with the adapter of some other task than without: 'c'",
    ]
    header, rows = matrix.rows_of(found)
    assert header == ("data of", "__base__", "a", "b", "c")
    assert rows[0] == ("a", "50.0%", "[10.0%]", "30.0%", "20.0%") and rows[1][-1] == "-"
    assert "| b | 50.0% | 5.0% | \\[20.0%\\] | - |" in matrix.markdown("x", found)
