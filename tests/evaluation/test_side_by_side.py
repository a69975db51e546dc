"""Several systems on one suite, in one table."""

import io

import rich.console

from hra_jax.evaluation import side_by_side


def results(**rates):
    tasks = {name: {"wer": rate, "cer": rate / 2, "metric": "wer"} for name, rate in rates.items() if rate is not None}
    return {"tasks": tasks, "tasks_not_scored": {name: "no step" for name, rate in rates.items() if rate is None}}


def entry(difference, verdict):
    return {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "verdict": verdict}


RESULTS = {"__base__": results(ann=0.5, bob=0.25), "own|x": results(ann=0.25, bob=None) | {"error": "it does nothing"}}
FOUND = {"tasks": {"ann": entry(-0.25, "better")}, "macro": entry(0.0, "not decidable")}
PAIRS = [("__base__", "own|x", FOUND, ""), ("own|x", "theirs", None, "other tasks")]


def test_every_task_has_a_row_and_every_system_a_column():
    header, rows = side_by_side.rates(RESULTS)
    assert header == ("task", "__base__", "own|x")
    assert rows == [
        ("ann", "50.0%", "25.0%"),
        ("bob", "25.0%", "-"),
        ("mean of what all have (1)", "50.0%", "25.0%"),
    ]
    assert side_by_side.rates({name: results(ann=0.5, bob=0.25) for name in "xy"})[1][-1] == (
        "mean of the tasks",
        "37.5%",
        "37.5%",
    )
    assert side_by_side.rates({"x": results(ann=0.5), "y": results(bob=0.5)})[1][-1][1:] == ("-", "-")


def test_the_error_rate_that_decides_stands_in_the_table():
    characters = results(ann=0.5)
    characters["tasks"]["ann"]["metric"] = "cer"
    assert side_by_side.rates({"own": characters})[1][0] == ("ann", "25.0%")


def test_a_system_that_is_not_decoded_greedily_has_its_greedy_rates_in_a_column_before():
    decoded = results(ann=0.25, bob=0.5) | {"greedy_wer": 0.5, "decoding": {"method": "beam", "beam": 16}}
    for rate, task in zip((0.4, 0.6), decoded["tasks"].values(), strict=True):
        task["greedy_wer"] = rate
    systems = {"x": results(ann=0.5, bob=0.25), "own": decoded}
    header, rows = side_by_side.rates(systems)
    assert header == ("task", "x", "own (greedy)", "own")
    assert rows[0] == ("ann", "50.0%", "40.0%", "25.0%") and rows[-1][1:] == ("37.5%", "50.0%", "37.5%")
    assert side_by_side.notes(systems, []) == ["own: decoded with a beam of 16"]


def test_the_report_has_rates_differences_and_what_is_left_out():
    text = side_by_side.markdown("digits", RESULTS, PAIRS)
    assert "| ann | 50.0% | 25.0% |" in text.replace("\\", "")
    assert "better" in text and "not decidable" in text and "-25.0" in text
    assert "bob" in text and "no step" in text and "it does nothing" in text and "other tasks" in text
    assert "| own|x |" not in text  # it would be two cells
    console = rich.console.Console(file=io.StringIO(), width=200)
    side_by_side.print_tables("digits", RESULTS, PAIRS, console=console)
    assert "own|x: it does nothing" in console.file.getvalue()
