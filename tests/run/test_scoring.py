"""Scores of a run: which utterances count as not scored."""

from hra_jax.data.report import DataReport
from hra_jax.data.utterance import Refused, Utterance
from hra_jax.evaluation.report import Unscored, UtteranceResult
from hra_jax.evaluation.suites import Suite, SuiteTask
from hra_jax.run import scoring


def test_lines_that_the_manifest_refused_are_among_the_utterances_that_were_not_scored():
    refused = Refused("c.wav", "unreachable_audio: c.wav: http:// is not read here")
    rows = [Utterance(f"/{key}", 1.0, "one", key=key) for key in ("a.wav", "b.wav")]
    ann = SuiteTask("ann", "m.jsonl", "speaker", "ann", "ann", tuple(rows), (refused,))
    bob = SuiteTask("bob", "m.jsonl", "speaker", "bob", "bob", (), (refused,))
    report = DataReport()
    report.add("too_long", "ann: b.wav", "9 s")
    scored = [
        UtteranceResult(task="ann", key="a.wav", reference="one", hypothesis="one", base_hypothesis="one", duration=1.0)
    ]
    assert scoring._unscored(Suite("s", "basic", (ann,), (bob,)), scored, report) == [
        Unscored("ann", "b.wav", "too_long: 9 s"),
        Unscored("ann", "c.wav", refused.why),
        Unscored("bob", "c.wav", refused.why),
    ]
