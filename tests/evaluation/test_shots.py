"""Held-out tasks: draws that are nested, apart from the test, and stay what they are; error rates against shots."""

import io
import json

import numpy as np
import pytest
import rich.console

from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation import shots
from hra_jax.evaluation.bootstrap import make_sample, seed_of
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.report import print_table
from hra_jax.evaluation.results import ACCOUNTING, evaluate_results
from hra_jax.evaluation.suites import load_suite, trains_heads

SUITE = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.name, config.normalizer = "held", "basic"
    config.tasks = (("*", "{dir}/test.jsonl", "speaker=*", "__few__"), ("plain", "{dir}/test.jsonl", "", "__base__"))
    config.support, config.shots, config.draws = "{dir}/SUPPORT.jsonl", (0, 1, 3, 5), 4
    return config
"""


def _write(folder, name, rows):
    lines = [
        {"audio_filepath": f"{name}-{speaker}-{number}.wav", "duration": 1.0, "text": "a", "speaker": speaker}
        for speaker, count in rows.items()
        for number in range(count)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def suite(tmp_path):
    _write(tmp_path, "test", {"ann": 3, "bob": 2, "cy": 2})
    _write(tmp_path, "train", {"ann": 9, "bob": 5, "cy": 4})
    (tmp_path / "held.py").write_text(SUITE.replace("SUPPORT", "train"))
    (tmp_path / "leaky.py").write_text(SUITE.replace("SUPPORT", "test"))
    return lambda name="held": load_suite(str(tmp_path / f"{name}.py"), data_dir=str(tmp_path), report=DataReport())


def _heads(suite, *names, seed=0):
    tasks = [task for task in shots.few_tasks(suite) if task.name in names]
    return {head.name: head for head in shots.draw_heads(suite, tasks, seed=seed, report=DataReport())}


def test_every_draw_of_every_number_of_shots_is_a_head_and_draws_are_nested(suite):
    heads = _heads(suite(), "ann", "bob")
    assert len(heads) == 2 * 3 * 4 and "ann@3#4" in heads and not any("@0" in name for name in heads)
    for head in heads.values():
        assert len({row.key for row in head.support}) == len(head.support) == head.shots
        assert all(row.tag("speaker") == head.task and row.key.startswith("train") for row in head.support)
    for task in ("ann", "bob"):
        for draw in range(1, 5):
            one, three, five = (heads[f"{task}@{k}#{draw}"].support for k in (1, 3, 5))
            assert five[:3] == three and three[:1] == one
    assert len({heads[f"ann@3#{draw}"].support[0].key for draw in range(1, 5)}) > 1


def test_the_draws_of_a_task_depend_on_the_seed_and_on_no_other_task(suite):
    both, alone = _heads(suite(), "ann", "bob"), _heads(suite(), "ann")
    assert {name: both[name] for name in alone} == alone
    assert _heads(suite(), "ann", seed=1) != alone


def test_too_little_support_and_a_support_that_is_the_test_are_one_line_each(suite):
    with pytest.raises(UserError, match="task 'cy': .*train.jsonl has 4 utterances of it; needed are 5, the greatest"):
        _heads(suite(), "cy")
    with pytest.raises(UserError, match="suite 'held' shares 7 utterances with support data"):
        _heads(suite("leaky"), "ann")


@pytest.mark.parametrize("has_mean, zero", [(True, "__mean__"), (False, "__base__")])
def test_every_head_is_scored_on_all_utterances_of_its_task_and_none_is_no_shot(suite, has_mean, zero):
    held = suite()
    tasks = [task for task in shots.few_tasks(held) if task.name != "cy"]
    heads = shots.draw_heads(held, tasks, seed=0, report=DataReport())
    scored = shots.scored_suite(held, tasks, heads, has_mean=has_mean)
    adapters = {task.name: task.adapter_task for task in scored.tasks}
    assert adapters == {"plain": "__base__", "ann@0": zero, "bob@0": zero} | {head.name: head.name for head in heads}
    assert len(adapters) == len(scored.tasks)
    for task in scored.tasks:
        if task.name.startswith("ann"):
            assert [row.key for row in task.utterances] == [f"test-ann-{number}.wav" for number in range(3)]


def test_a_suite_says_whether_it_trains_heads_before_its_data_is_read(suite, tmp_path):
    (tmp_path / "test.jsonl").unlink(missing_ok=True)
    assert trains_heads(str(tmp_path / "held.py")) and not trains_heads("fsdd")


def test_how_heads_are_trained_is_a_tuple_of_pairs(suite, tmp_path):
    assert suite().few == {}
    path = tmp_path / "held.py"
    text = path.read_text()
    for few, found in ((("steps", 5),), {"steps": 5}), (("steps", 5), None), (((1, 5),), None):
        path.write_text(text.replace("config.support,", f"config.few = {few!r}\n    config.support,"))
        if found is None:
            with pytest.raises(UserError, match="suite 'held': few = .*a tuple of pairs"):
                suite()
        else:
            assert suite().few == found


# --- Error rates against shots ----------------------------------------------------------------------------------------


def _sample(draws, utterances, seed):
    """Utterances of one block each, which are too few blocks or one: errors [U, N]."""
    random = np.random.default_rng(seed)
    words = random.integers(1, 6, utterances)
    errors = random.binomial(words, 0.3, (draws, utterances)).T
    return make_sample([(f"{number:03}", "ann") for number in range(utterances)], errors, words)


def _reference(tasks, samples, seed):
    """The rates of the resamples in plain loops over tasks, draws and utterances, with the same random numbers."""
    of_tasks = []
    for name, sample in tasks.items():
        size, draws = sample.errors.shape
        utterances = np.random.default_rng(seed_of(seed, name)).integers(0, size, size=samples * size).tolist()
        chosen = np.random.default_rng(seed_of(seed, f"draws of {name}")).integers(draws, size=samples * draws).tolist()
        errors, words, rates = sample.errors.tolist(), sample.units.tolist(), []
        for number in range(samples):
            some = utterances[number * size : (number + 1) * size]
            of_draws = [
                sum(errors[at][draw] for at in some) / sum(words[at] for at in some)
                for draw in chosen[number * draws : (number + 1) * draws]
            ]
            rates.append(sum(of_draws) / draws)
        of_tasks.append(rates)
    if len(tasks) == 1:
        return of_tasks[0]
    key, number = seed_of(seed, "mean of tasks"), len(tasks)
    drawn = np.random.default_rng([*key, 0]).integers(0, number, size=(samples, number))
    within = np.random.default_rng([*key, 1]).random((samples, number))
    return [
        sum(of_tasks[task][int(at * samples)] for task, at in zip(*row, strict=True)) / number
        for row in zip(drawn.tolist(), within.tolist(), strict=True)
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_the_interval_equals_a_plain_loop_over_tasks_utterances_and_draws(count):
    tasks = {f"task {number}": _sample(5, 12 + number, number) for number in range(count)}
    point = shots.curve_point(10, tasks, samples=200, seed=7)
    rates = _reference(tasks, 200, 7)
    np.testing.assert_allclose([point.low, point.high], np.quantile(rates, [0.025, 0.975]), rtol=1e-12)
    by_draw = [np.mean([t.errors[:, draw].sum() / t.units.sum() for t in tasks.values()]) for draw in range(5)]
    np.testing.assert_allclose(point.by_draw, by_draw)
    assert point.rate == pytest.approx(np.mean(by_draw)) and point.low < point.rate < point.high
    assert shots.curve_point(10, tasks, samples=0).low is None


def test_draws_that_differ_widen_the_interval_and_so_do_speakers():
    names, units = [(f"{number:03}", f"speaker {number % 8}") for number in range(80)], np.full(80, 4)
    same = np.tile([[1], [2]], (40, 5))
    draws = np.tile([0, 0, 2, 4, 4], (80, 1))
    speakers = np.repeat(np.tile([0, 0, 0, 0, 3, 3, 3, 3], 10)[:, None], 5, axis=1)
    widths = []
    for errors in (same, draws, speakers):
        point = shots.curve_point(1, {"all": make_sample(names, errors, units)}, samples=300)
        widths.append(point.high - point.low)
    assert widths[1] > 2 * widths[0] and widths[2] > 2 * widths[0]
    alone = shots.curve_point(1, {"all": make_sample([(key, None) for key, _ in names], speakers, units)}, samples=300)
    assert widths[2] > 1.5 * (alone.high - alone.low)


def _results(suite):
    """Rows in which every head makes as many word errors as its draw, and no shot three; the base makes four."""
    rows = []
    for name, (_, k, draw) in suite.heads.items():
        task = next(task for task in suite.tasks if task.name == name)
        for row in task.utterances:
            words = ["wrong"] * (draw if k else 3) + ["a"] * 5
            texts = (" ".join(words[:5]), "b b b b a")
            rows.append(UtteranceResult(name, row.key, "a a a a a", *texts, duration=1.0))
    return rows


def test_the_curve_of_results_counts_every_draw_and_leaves_out_what_one_of_them_lacks(suite):
    held = suite()
    tasks = [task for task in shots.few_tasks(held) if task.name != "cy"]
    heads = shots.draw_heads(held, tasks, seed=0, report=DataReport())
    scored = shots.scored_suite(held, tasks, heads, has_mean=True)
    assert scored.heads["ann@0"] == ("ann", 0, 0) and scored.heads["bob@3#2"] == ("bob", 3, 2)
    rows = [row for row in _results(scored) if (row.task, row.key) != ("ann@3#2", "test-ann-0.wav")]
    accounting = dict.fromkeys(ACCOUNTING, 1)
    plain = [UtteranceResult("plain", row.key, "a", "a", "a", duration=1.0) for row in held.utterances[:7]]
    results = evaluate_results([*rows, *plain], scored, accounting=accounting, bootstrap=50)
    found = results["few_shot"]
    assert found["shots"] == [0, 1, 3, 5] and found["draws"] == 4 and found["base"] == {"ann": 0.8, "bob": 0.8}
    for points in (*found["tasks"].values(), found["all"]):
        assert [point["rate"] for point in points] == pytest.approx([0.6, 0.5, 0.5, 0.5])
        assert points[0]["by_draw"] == pytest.approx([0.6]) and points[0]["low"] == pytest.approx(0.6)
        assert points[2]["by_draw"] == pytest.approx([0.2, 0.4, 0.6, 0.8])
        assert points[2]["low"] < 0.5 < points[2]["high"]
    header, lines = shots.table_of(found)
    assert header == ("task", "base", "0 utterances", "1 utterance", "3 utterances", "5 utterances")
    assert [line[:3] for line in lines] == [
        (name, "80.0%", "60.0% (60.0% to 60.0%)") for name in ("ann", "bob", "mean of the tasks")
    ]
    printed = io.StringIO()
    print_table(results, console=rich.console.Console(file=printed, width=200))
    assert "heads of held-out tasks" in printed.getvalue() and "ann@5#4" in printed.getvalue()


def test_a_task_whose_utterances_are_not_common_to_all_draws_has_no_curve_and_the_others_do(suite):
    held = suite()
    tasks = [task for task in shots.few_tasks(held) if task.name != "cy"]
    scored = shots.scored_suite(held, tasks, shots.draw_heads(held, tasks, seed=0, report=DataReport()), has_mean=True)
    by_task = {}
    for row in _results(scored):
        # Of bob's two utterances one draw lacks the first, and another one the second.
        if (row.task, row.key) not in (("bob@3#2", "test-bob-0.wav"), ("bob@5#1", "test-bob-1.wav")):
            by_task.setdefault(row.task, []).append(row)
    found = shots.curves(by_task, scored, samples=20, seed=0)
    assert list(found["tasks"]) == list(found["base"]) == ["ann"]
    assert [point["rate"] for point in found["all"]] == pytest.approx([0.6, 0.5, 0.5, 0.5])
