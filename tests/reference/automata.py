"""Automata of a few contexts, in plain Python."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from hra_jax.text.automaton import Automaton


def from_contexts(
    arcs: Mapping[tuple[Hashable, ...], Mapping[int, float]],
    *,
    missing: Sequence[float] | np.ndarray,
    backoff_scores: Mapping[tuple[Hashable, ...], float] | None = None,
    final: Mapping[tuple[Hashable, ...], float] | None = None,
    start: tuple[Hashable, ...] = (),
) -> Automaton:
    """An automaton whose states are contexts: the tokens before, as tuples; for few of them, in plain Python.

    A token leads to the longest context at the end of (context + token), and a context backs off to the longest one at
    its own end. What stands for the start of a sentence may be any value that is no token.

    Args:
      arcs: {context: {token: score}}; the root, (), need not be among them.
      missing: [V], what the root gives a token that it has no arc for.
      backoff_scores: {context: what backing off adds}; 0 where a context is not named.
      final: {context: what is added at the end}; 0 where a context is not named.
      start: the context before the first token.

    Raises:
      ValueError: `start` is no context.
      UserError: whatever `Automaton` raises.
    """
    contexts = [(), *(context for context in arcs if context)]
    states = {context: state for state, context in enumerate(contexts)}
    if start not in states:
        raise ValueError(f"no context {start}")

    def longest(tokens: tuple[Hashable, ...]) -> int:
        return next(states[tokens[i:]] for i in range(len(tokens) + 1) if tokens[i:] in states)

    rows = [sorted(arcs.get(context, {}).items()) for context in contexts]
    flat = [(token, score, longest((*c, token))) for c, row in zip(contexts, rows, strict=True) for token, score in row]
    tokens, scores, targets = zip(*flat, strict=True) if flat else ((), (), ())
    return Automaton(
        first=np.cumsum([0, *map(len, rows)]).astype(np.int32),
        tokens=np.array(tokens, np.int32),
        scores=np.array(scores, np.float32),
        targets=np.array(targets, np.int32),
        backoff=np.array([longest(context[1:]) for context in contexts], np.int32),
        backoff_scores=np.array([(backoff_scores or {}).get(context, 0.0) for context in contexts], np.float32),
        missing=np.array(missing, np.float32),
        final=np.array([(final or {}).get(context, 0.0) for context in contexts], np.float32),
        start=states[start],
    )
