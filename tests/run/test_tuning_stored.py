"""What is told of an adapter that was tuned again."""

from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.run.tuning_stored import _calibrated_otherwise


def test_tasks_are_named_whose_searched_words_were_calibrated_with_other_settings():
    before = {"lm": {"name": "x", "digest": "d"}, "beam": 8, "lm_weight": 0.8, "wer": 0.1}
    searched = {"temperature": 1.0, "search_temperature": 2.0}
    calibrations = {"ann": searched, "bob": searched, "cy": {"temperature": 1.0}, "dee": searched, "eve": searched}
    entries = [{"name": name, "calibration": facts, "decode": before} for name, facts in calibrations.items()]
    del entries[-1]["decode"]
    exported = ExportedAdapter({}, {}, {}, entries, {})
    alike = before | {"wer": 0.2, "lm": {"name": "y", "digest": "d"}}
    found = {"ann": before | {"beam": 16}, "bob": alike, "cy": before | {"beam": 16}, "eve": before}
    assert _calibrated_otherwise(exported, found) == ["ann", "eve"]
