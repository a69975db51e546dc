"""The page of several systems: every rate, every difference, and a plot where the sizes differ."""

from reference.pages import EVIL, Tags
from reference.scored import ACCOUNTING, evaluate, make_rows, make_suite

from hra_jax.console import html_text
from hra_jax.evaluation.systems_page import page_of


def systems(*sizes: int):
    suite = make_suite(ann="ann", **{EVIL: "bob"})
    found = {}
    for number, size in enumerate(sizes):
        rows = make_rows("ann", 20, seed=number) + make_rows(EVIL, 20, seed=number + 9)
        accounting = ACCOUNTING | {"trainable_parameters": size}
        found[f"{EVIL} {number}"] = evaluate(rows, suite, accounting=accounting)
    return found


def pair(results, first: int, second: int):
    names, tasks = list(results), next(iter(results.values()))["tasks"]
    return (
        names[first],
        names[second],
        {
            "tasks": {name: task["difference"] for name, task in tasks.items()},
            "macro": {"difference": 0.1, "low": -0.1, "high": 0.2, "verdict": "not decidable"},
        },
        "",
    )


def test_every_rate_and_difference_is_on_the_page_and_names_are_texts():
    results = systems(500, 500)
    page = page_of("digits", results, [pair(results, 0, 1)], notes=[EVIL], command=f"python {EVIL}")
    tags = Tags(page)
    assert tags.open == [] and [tag for tag, _ in tags.found].count("script") == 1
    assert not any(name in ("src", "href", "style") for _, given in tags.found for name in given)
    for found in results.values():
        for entry in (*found["tasks"].values(), {"wer": found["over_tasks"]["rate"]}):
            assert f"{entry['wer']:.1%}" in page
    for difference in pair(results, 0, 1)[2]["tasks"].values():
        assert f">{100 * difference['difference']:+.2f}<" in page
    assert "-10.00 to +20.00" in page and "is not decidable" in page


def test_the_mean_and_the_best_are_of_the_tasks_that_all_systems_have():
    results = systems(500, 90_000)
    (one, first), (_, second) = results.items()
    # The second left its hardest task out, and is no better for that.
    first["tasks"] |= {"ann": first["tasks"]["ann"] | {"wer": 0.111}, EVIL: first["tasks"][EVIL] | {"wer": 0.9}}
    second["tasks"] = {"ann": second["tasks"]["ann"] | {"wer": 0.222}}
    found = page_of("digits", results, [])
    assert (
        "trained parameters" in found
        and html_text(f"mean error rate of {one}") in found
        and "mean of what all have (1)" in found
    )
    second["tasks"] = {"cy": second["tasks"]["ann"]}
    found = page_of("digits", results, [])
    assert "No task is scored in all systems" in found and "trained parameters" not in found


def test_error_rates_are_drawn_against_parameters_only_where_these_differ():
    assert "trained parameters" not in page_of("digits", systems(500, 500), [])
    page = page_of("digits", systems(500, 90_000), [])
    assert "trained parameters" in page and ">90,000</text>" in page and ">500</text>" in page


def test_a_matrix_shows_every_rate_and_frames_the_adapter_of_each_task():
    found = {"tasks": ["ann", EVIL], "adapters": ["ann", EVIL], "metric": ["wer"] * 2, "own": ["ann", EVIL]}
    found |= {"base": [0.5, None], "rates": [[0.111, 0.222], [None, 0.333]], "left_out": 3}
    page = page_of("digits", systems(500), [], matrices={EVIL: found})
    assert Tags(page).open == []
    for rate in ("11.1%", "22.2%", "33.3%"):
        assert f">{rate}</td>" in page
    assert page.count('own">') == 2 and 'h4 own">33.3%' in page and "3 are left out" in page
