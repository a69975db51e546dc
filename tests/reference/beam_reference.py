"""CTC prefix beam search in plain Python, and an exhaustive search; both are slow on purpose.

Scores are natural logarithms. `extend(prefix, token)` is what a language model, phrases and a token bonus add when
`token` is appended to the tuple `prefix`; `end(prefix)` what they add at the end. With an infinite width and no
threshold both functions find the same best prefix.
"""

import itertools
import math

NEVER = -math.inf


def add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))


def prefix_beam(log_probs, *, blank: int, width: int, extend=None, end=None):
    """The `width` best prefixes of log_probs `[T][V]`: a list of (score, prefix), best first.

    score = log of the sum over all alignments of the prefix + what the language model gave.
    """
    extend, end = extend or (lambda prefix, token: 0.0), end or (lambda prefix: 0.0)
    beams = {(): (0.0, NEVER, 0.0)}  # prefix -> log P(ends in blank), log P(ends in its last token), language model
    for frame in log_probs:
        found = {}

        def put(prefix, blank_part, token_part, model, found=found):
            before = found.get(prefix, (NEVER, NEVER, model))
            found[prefix] = (add(before[0], blank_part), add(before[1], token_part), model)

        for prefix, (in_blank, in_token, model) in beams.items():
            both = add(in_blank, in_token)
            put(prefix, both + frame[blank], NEVER, model)
            if prefix:
                put(prefix, NEVER, in_token + frame[prefix[-1]], model)
            for token, score in enumerate(frame):
                if token == blank:
                    continue
                # A token twice in a row needs a blank between.
                start = in_blank if prefix and token == prefix[-1] else both
                put((*prefix, token), NEVER, start + score, model + extend(prefix, token))
        ranked = sorted(found.items(), key=lambda item: -(add(item[1][0], item[1][1]) + item[1][2]))
        beams = dict(ranked[:width])
    scored = [(add(b, t) + model + end(prefix), prefix) for prefix, (b, t, model) in beams.items()]
    return sorted(scored, key=lambda item: -item[0])


def exhaustive(log_probs, *, blank: int, extend=None, end=None):
    """All prefixes with their scores, best first, by summing over every path: only for a few frames and tokens."""
    extend, end = extend or (lambda prefix, token: 0.0), end or (lambda prefix: 0.0)
    totals = {}
    for path in itertools.product(range(len(log_probs[0])), repeat=len(log_probs)):
        score = sum(frame[token] for frame, token in zip(log_probs, path, strict=True))
        prefix = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        totals[prefix] = add(totals.get(prefix, NEVER), score)
    scored = []
    for prefix, total in totals.items():
        model = sum(extend(prefix[:i], prefix[i]) for i in range(len(prefix)))
        scored.append((total + model + end(prefix), prefix))
    return sorted(scored, key=lambda item: -item[0])
