"""Automata with back-off arcs: `dense` and `steps` are `step`, and contexts mean what a plain look-up of them means."""

import dataclasses

import numpy as np
import pytest
from reference.automata import from_contexts

from hra_jax.errors import UserError
from hra_jax.text.automaton import Automaton

V = 5
START = "<s>"


def random_contexts(rng: np.random.Generator) -> dict[tuple, dict[int, float]]:
    """Contexts of up to three tokens, some of them after the start; not all suffixes of a context are contexts."""
    contexts: dict[tuple, dict[int, float]] = {(): {}, (START,): {}}
    for _ in range(30):
        context = tuple(int(token) for token in rng.integers(0, V, rng.integers(0, 4)))
        contexts[(START, *context) if rng.random() < 0.3 else context] = {}
    return {
        c: {int(t): float(rng.normal()) for t in rng.choice(V, rng.integers(0, V), replace=False)} for c in contexts
    }


def random_automaton(seed: int) -> tuple[Automaton, dict, dict, dict, np.ndarray]:
    rng = np.random.default_rng(seed)
    arcs = random_contexts(rng)
    backoff_scores = {context: float(rng.normal()) for context in arcs if context}
    final = {context: float(rng.normal()) for context in arcs}
    missing = rng.normal(size=V)
    given = {"backoff_scores": backoff_scores, "final": final, "missing": missing, "start": (START,)}
    return from_contexts(arcs, **given), arcs, backoff_scores, final, missing


def plain_score(tokens, arcs, backoff_scores, final, missing) -> float:
    """By looking up histories: the whole history is shortened from its left until it is a context."""
    history, total = (START,), 0.0
    for token in tokens:
        context = history
        while True:
            while context not in arcs:
                context = context[1:]
            if token in arcs[context]:
                total += arcs[context][token]
                break
            if not context:
                total += missing[token]
                break
            total, context = total + backoff_scores[context], context[1:]
        # What no context can hold is forgotten, as the automaton does: the root forgets a token it has no arc for.
        history = (*context, token) if token in arcs[context] else ()
    while history not in arcs:
        history = history[1:]
    return total + final[history]


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_contexts_looked_up_one_by_one(seed):
    automaton, *tables = random_automaton(seed)
    rng = np.random.default_rng(seed)
    for _ in range(40):
        tokens = rng.integers(0, V, rng.integers(0, 9)).tolist()
        assert automaton.score(tokens) == pytest.approx(plain_score(tokens, *tables), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_all_tokens_and_many_steps_at_a_time_are_the_steps_one_by_one(seed):
    automaton, *_ = random_automaton(seed)
    states, tokens = (grid.ravel() for grid in np.meshgrid(np.arange(automaton.states), np.arange(V), indexing="ij"))
    single = [automaton.step(int(state), int(token)) for state, token in zip(states, tokens, strict=True)]
    for scores, targets in (automaton.dense(), automaton.steps(states, tokens)):
        np.testing.assert_allclose(scores.ravel(), [score for score, _ in single], atol=1e-5)
        assert targets.ravel().tolist() == [target for _, target in single]
    dense = automaton.dense()
    assert automaton.dense_bytes == sum(array.nbytes for array in dense)
    assert [array.dtype for array in dense] == [np.float32, np.int32]


def test_an_automaton_without_an_arc_takes_every_token_at_its_root():
    automaton = from_contexts({}, missing=[1.0, 2.0, 3.0])
    assert (automaton.states, automaton.arcs, automaton.step(0, 2)) == (1, 0, (3.0, 0))
    assert automaton.dense()[0].tolist() == [[1.0, 2.0, 3.0]] and automaton.score([0, 1]) == 3.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": [0, 2, 2], "tokens": [1, 1]}, "ascend"),
        ({"tokens": [0, 7]}, "'tokens' of an automaton holds 0 to 7; allowed: 0 to 2"),
        ({"targets": [0, 2]}, "'targets' of an automaton holds 0 to 2; allowed: 0 to 1"),
        ({"backoff": [0, 1]}, "state 1 of an automaton must lead to the root"),
        ({"backoff": [1, 0]}, "the root of an automaton must back off to itself"),
        ({"backoff_scores": [1.0, 0.0]}, "for a score of 0"),
        ({"scores": [0.0, np.nan]}, "'scores' of an automaton holds a score that is not finite"),
        ({"missing": [0.0, -np.inf, 0.0]}, "'missing' of an automaton holds a score that is not finite"),
        ({"first": [0, 3, 2]}, "must go from 0 to 2"),
        ({"first": [0, 1, 1]}, "must go from 0 to 2"),
        ({"final": [0.0]}, "'final' of an automaton has 1 values; needed: 2"),
        ({"final": np.zeros(2)}, "'final' of an automaton is float64"),
        ({"start": 2}, "2 states starts at 2; allowed: 0 to 1"),
    ],
)
def test_arrays_that_are_no_automaton_are_refused(changes, message):
    good = from_contexts({(): {0: 1.0}, (0,): {1: 2.0}}, missing=[0.0] * 3)
    dtypes = {field.name: getattr(getattr(good, field.name), "dtype", None) for field in dataclasses.fields(good)}
    wrong = {n: np.array(v, dtypes[n]) if isinstance(v, list) else v for n, v in changes.items()}
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        dataclasses.replace(good, **wrong)


def test_a_chain_of_back_off_arcs_without_an_end_in_sight_is_refused():
    count = 20_000
    good = from_contexts({}, missing=[0.0])
    backoff = np.maximum(np.arange(count, dtype=np.int32) - 1, 0)
    zeros = np.zeros(count, np.float32)
    with pytest.raises(UserError, match="must lead to the root, over at most 4,096 of them"):
        dataclasses.replace(
            good, first=np.zeros(count + 1, np.int32), backoff=backoff, backoff_scores=zeros, final=zeros
        )
