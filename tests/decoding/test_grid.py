"""The grid of weights: the best point is found, an edge widens it, and ties go to what is nearest to the defaults."""

import itertools

import pytest

from hra_jax.decoding.grid import AXES, BEAMS, MEAN, Axis, Tuned, compare_beams, tables, tune
from hra_jax.decoding.settings import DEFAULT_WEIGHTS


def valley(**least):
    """Error rates that are lowest at some weights."""

    def rates(weights):
        return {MEAN: 0.1 + sum(abs(value - least.get(name, value)) for name, value in weights.items())}

    return rates


def test_the_best_point_is_that_of_all_points_tried_one_by_one():
    rates = valley(lm_weight=1.1, token_bonus=2.0)
    axes = (AXES["lm_weight"], AXES["token_bonus"])
    expected = min(
        itertools.product(*(axis.values for axis in axes)),
        key=lambda point: rates(dict(zip(("lm_weight", "token_bonus"), point, strict=True)))[MEAN],
    )
    found = tune(rates, axes)
    assert found.best[MEAN] == expected == (1.1, 2.0) and found.weights() == {"lm_weight": 1.1, "token_bonus": 2.0}
    assert found.axes == axes and len(found.rates) == 20


@pytest.mark.parametrize("least", [3.1, 2.0])
def test_an_optimum_on_an_edge_widens_the_grid_until_it_is_inside(least):
    found = tune(valley(lm_weight=least, token_bonus=1.0), (AXES["lm_weight"], AXES["token_bonus"]))
    axis = found.axes[0]
    assert abs(found.weights()["lm_weight"] - least) <= axis.step / 2
    assert axis.values[0] < found.weights()["lm_weight"] < axis.values[-1]
    # Every point of the wider grid was tried, each once.
    assert set(found.rates) == set(itertools.product(*(axis.values for axis in found.axes)))


def test_a_weight_that_cannot_be_lower_stays_on_its_edge():
    axis = Axis("lm_weight", (0.0, 0.5, 1.0), 0.0)
    found = tune(valley(lm_weight=-1.0), [axis])
    assert found.axes == (axis,) and found.weights() == {"lm_weight": 0.0}
    below = tune(valley(token_bonus=-1.0), [AXES["token_bonus"]])
    assert below.weights() == {"token_bonus": -1.0} and below.axes[0].values[0] == -2.0


def test_a_grid_without_an_end_is_widened_so_often_and_no_more():
    found = tune(lambda weights: {MEAN: 1.0 / (1.0 + weights["lm_weight"])}, [AXES["lm_weight"]])
    assert len(found.axes[0].values) == len(AXES["lm_weight"].values) + 8


def test_of_equal_rates_the_point_nearest_to_the_defaults_is_the_best():
    found = tune(lambda weights: {MEAN: 0.25}, AXES.values())
    assert found.weights() == DEFAULT_WEIGHTS
    assert found.axes == tuple(AXES.values())


def test_a_task_has_its_own_optimum_and_the_grid_is_widened_for_it():
    def rates(weights):
        own = {"ann": 0.5, "bob": 2.3}
        found = {task: abs(weights["lm_weight"] - least) for task, least in own.items()}
        return found | {MEAN: sum(found.values()) / 2}

    found = tune(rates, [AXES["lm_weight"]], tasks=["ann", "bob"])
    assert found.weights("ann") == {"lm_weight": 0.5} and found.weights("bob") == {"lm_weight": 2.3}
    assert found.rate("bob") == pytest.approx(0.0, abs=1e-9)


def test_a_given_weight_is_one_value_and_is_not_widened():
    found = tune(valley(lm_weight=3.0, token_bonus=1.0), [Axis("lm_weight", (0.7,), 0.0), AXES["token_bonus"]])
    assert found.weights() == {"lm_weight": 0.7, "token_bonus": 1.0}


@pytest.mark.parametrize(
    ("rates", "beam"),
    [
        ((0.20, 0.20, 0.20), 8),  # of equal ones the narrowest
        ((0.2039, 0.2001, 0.20), 8),  # two percent of 20% are 0.4 points
        ((0.2041, 0.2039, 0.20), 16),
        ((0.25, 0.2041, 0.20), 32),
        ((0.25, 0.20, 0.22), 16),  # a wider one may be worse
        ((0.0, 0.0, 0.0), 8),
        ((0.01, 0.0, 0.0), 16),
    ],
)
def test_of_beams_that_are_about_as_good_the_narrowest_is_taken(rates, beam):
    by_beam = dict(zip(BEAMS, rates, strict=True))
    tuned = Tuned((AXES["lm_weight"],), {(0.8,): {MEAN: by_beam[16]}}, {MEAN: (0.8,)})
    asked = []

    def rates_of(width):
        asked.append(width)
        return {MEAN: by_beam[width]}

    found = compare_beams(rates_of, tuned, tuned_with=16, others=BEAMS)
    assert asked == [8, 32]  # what the weights were found with is known
    assert {width: one[MEAN] for width, one in found.rates.items()} == by_beam and list(found.rates) == [8, 16, 32]
    assert found.best == {MEAN: beam} and found.rate() == by_beam[beam]


def test_a_task_that_is_tuned_by_itself_has_a_beam_of_its_own():
    tuned = Tuned((), {(): {MEAN: 0.2, "ann": 0.1, "bob": 0.3}}, {MEAN: (), "ann": (), "bob": ()})
    rates = {8: {MEAN: 0.25, "ann": 0.1, "bob": 0.4}, 32: {MEAN: 0.2, "ann": 0.1, "bob": 0.2}}
    found = compare_beams(rates.__getitem__, tuned, tuned_with=16, others=BEAMS)
    assert found.best == {MEAN: 16, "ann": 8, "bob": 32} and found.rate("bob") == 0.2


def test_without_a_weight_to_look_for_the_one_point_is_tried():
    found = tune(lambda weights: {MEAN: 0.25}, [])
    assert found.weights() == {} and found.rate() == 0.25 and tables(found) == []


def test_the_tables_hold_every_rate_and_mark_the_best():
    found = tune(valley(lm_weight=0.8, token_bonus=1.0, phrase_weight=1.5), [AXES[n] for n in DEFAULT_WEIGHTS][::-1])
    shown = tables(found)
    assert [title for title, _, _ in shown] == [f"phrase_weight {value:g}" for value in (0.5, 1.5, 2.5)]
    cells = [cell for _, _, rows in shown for row in rows for cell in row[1:]]
    assert len(cells) == len(found.rates) and [cell for cell in cells if cell.endswith("*")] == ["10.0%*"]
    ((title, header, rows),) = tables(tune(valley(lm_weight=0.8), [AXES["lm_weight"]]))
    assert (title, header) == ("", ("lm_weight", "error rate")) and rows[2] == ("0.8", "10.0%*")
