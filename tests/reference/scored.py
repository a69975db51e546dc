"""Recognised utterances of a made-up suite, and their results."""

import numpy as np

from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.results import evaluate_results
from hra_jax.evaluation.suites import Suite, SuiteTask

ACCOUNTING = {
    "trainable_parameters": 500,
    "shared_parameters": 300,
    "parameters_per_task": 100,
    "backbone_parameters": 20000,
    "backbone_fingerprint": "f00d",
}
ODD = "a/b <b>|$x$ [red]"


def make_suite(**adapters):
    tasks = tuple(SuiteTask(name, "test.jsonl", "speaker", name, adapter, ()) for name, adapter in adapters.items())
    return Suite("digits", "basic", tasks)


def make_rows(task, number, *, seed=0, base=True):
    rng = np.random.default_rng(seed)
    words = ["one", "two", "three", "four"]
    rows = []
    for index in range(number):
        reference = " ".join(rng.choice(words, size=5))
        hypothesis, base_text = (
            " ".join(rng.choice(words) if rng.random() < p else w for w in reference.split()) for p in (0.1, 0.6)
        )
        rows.append(UtteranceResult(task, f"{index}.wav", reference, hypothesis, base_text if base else None, 1.5))
    return rows


SUITE = make_suite(**{"george": "george", ODD: "__base__"})
ROWS = make_rows("george", 40) + make_rows(ODD, 20, seed=3)


def evaluate(rows=ROWS, suite=SUITE, **changes):
    return evaluate_results(rows, suite, **({"accounting": ACCOUNTING, "bootstrap": 100} | changes))
