"""Calibrations in tasks.json: what a new measurement takes the place of."""

from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.tasks import calibrating


def test_what_was_measured_of_searched_words_stays_on_the_same_suite_and_is_else_told_to_go(capsys):
    searched = {"search_temperature": 3.0, "search_ece_before": 0.2}
    earlier = {"suite": "chosen", "temperature": 2.0} | searched
    entries = [{"name": name, "calibration": earlier} for name in ("ann", "bob", "cy", "dee")]
    exported = ExportedAdapter({}, {}, {}, [*entries, {"name": "eve"}], {})
    found = {name: {"suite": "chosen", "temperature": 1.5} for name in ("ann", "eve")}
    found |= {"bob": {"suite": "chosen", "search_temperature": 4.0}, "cy": {"suite": "other"}}
    after = {
        entry["name"]: entry.get("calibration") for entry in calibrating.with_calibrations(exported, found).tasks_json
    }
    assert after == {
        "ann": {"suite": "chosen", "temperature": 1.5} | searched,
        "bob": found["bob"],
        "cy": {"suite": "other"},
        "dee": earlier,
        "eve": found["eve"],
    }
    told = "words that are searched for are calibrated no longer, as the adapter holds no language model to search with"
    assert f"{told}: 'cy'; that was measured on another suite" in capsys.readouterr().out
