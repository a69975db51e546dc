"""Connectionist temporal classification in float64, twice: by enumerating every path, and by the forward-backward
recurrences (Graves et al. 2006, section 4). For tests only.

Letters: T frames, V vocabulary, U labels.
"""

import itertools

import numpy as np


def collapse(path, blank):
    """Repeats merged, then blanks dropped."""
    return [label for label, _ in itertools.groupby(path) if label != blank]


def all_paths(log_probs):
    """Every path over `[T, V]` with its log-probability."""
    frames, vocabulary = log_probs.shape
    for path in itertools.product(range(vocabulary), repeat=frames):
        yield path, sum(log_probs[t, label] for t, label in enumerate(path))


def enumerated_loss(log_probs, labels, blank):
    """-log of the summed probability of all paths that collapse to `labels`; inf where there is none."""
    total = -np.inf
    for path, value in all_paths(log_probs):
        if collapse(path, blank) == list(labels):
            total = np.logaddexp(total, value)
    return -total


def best_path(log_probs, blank):
    """The labels of the likeliest single path, by enumeration."""
    return collapse(max(all_paths(log_probs), key=lambda pair: pair[1])[0], blank)


def loss_and_gradient(logits, labels, blank):
    """Loss of one utterance and its gradient with respect to `logits` `[T, V]`, all frames valid."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    frames = len(logits)
    states = [blank]
    for label in labels:
        states += [label, blank]
    count = len(states)

    def skips(s):
        return s >= 2 and states[s] != blank and states[s] != states[s - 2]

    alpha = np.full((frames, count), -np.inf)
    beta = np.full((frames, count), -np.inf)
    alpha[0, : min(2, count)] = [log_probs[0, states[s]] for s in range(min(2, count))]
    for t in range(1, frames):
        for s in range(count):
            before = [s] + [s - 1] * (s >= 1) + [s - 2] * skips(s)
            alpha[t, s] = np.logaddexp.reduce([alpha[t - 1, n] for n in before]) + log_probs[t, states[s]]
    beta[-1, max(0, count - 2) :] = 0.0
    for t in range(frames - 2, -1, -1):
        for s in range(count):
            after = [s] + [s + 1] * (s + 1 < count) + [s + 2] * (s + 2 < count and skips(s + 2))
            beta[t, s] = np.logaddexp.reduce([beta[t + 1, n] + log_probs[t + 1, states[n]] for n in after])
    likelihood = np.logaddexp.reduce(alpha[-1, max(0, count - 2) :])
    occupied = np.zeros_like(logits)
    for t in range(frames):
        for s in range(count):
            occupied[t, states[s]] += np.exp(alpha[t, s] + beta[t, s] - likelihood)
    return -likelihood, np.exp(log_probs) - occupied
