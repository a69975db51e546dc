"""Parts of a mixture: seqio's own rates, groups by a tag that cover everything, and what is drawn is what was asked."""

import itertools
import json

import numpy as np
import pytest
from reference.accents import table_of

from hra_jax.data import groups, mixtures
from hra_jax.data.groups import parts_of, rate_by_size
from hra_jax.data.mixtures import ReferenceStream, SourceSpec
from hra_jax.errors import UserError


def _by_name(parts):
    return {part.spec.name: part for part in parts}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0, 5.0, 1000.0])
@pytest.mark.parametrize("cap", [0, 1, 30, 10_000])
def test_rates_by_size_are_those_of_seqio(temperature, cap):
    _, seqio = mixtures.libraries()

    class Counted:
        name, cache_dir = "counted", None

        def __init__(self, rows):
            self.num_input_examples = lambda split: rows

    for rows in (1, 7, 30, 1234):
        expected = seqio.mixing_rate_num_examples(Counted(rows), maximum=cap or None, temperature=temperature)
        assert rate_by_size(rows, temperature=temperature, cap_rows=cap) == pytest.approx(expected, rel=1e-15)


def test_without_settings_the_parts_are_the_sources_as_they_are():
    table = table_of(("a", "proportional", ["x"] * 5), ("b", 2.5, ["y"] * 3))
    parts = parts_of(table)
    assert [part.spec.weight for part in parts] == [5.0, 2.5]
    assert [part.spec.name for part in parts] == [spec.name for spec in table.specs()]
    assert [part.utterances.tolist() for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7]]


def test_temperature_and_cap_change_the_rates_by_size_and_no_other():
    table = table_of(("a", "proportional", ["x"] * 100), ("b", 2.5, ["y"] * 30), ("c", "proportional", ["y"] * 4))
    assert [part.spec.weight for part in parts_of(table, temperature=2.0)] == pytest.approx([10.0, 2.5, 2.0])
    assert [part.spec.weight for part in parts_of(table, cap_rows=50)] == [50.0, 2.5, 4.0]
    assert [part.spec.weight for part in parts_of(table, temperature=2.0, cap_rows=25)] == pytest.approx([5, 2.5, 2])


def test_groups_are_of_all_proportional_sources_together_however_their_utterances_are_split_into_files():
    accents = ["scottish"] * 9 + ["welsh"] * 4 + [None] * 1
    whole = _by_name(parts_of(table_of(("a", "proportional", accents)), groups="accent", temperature=2.0))
    split = _by_name(
        parts_of(
            table_of(("a", "proportional", accents[:7]), ("b", "proportional", accents[7:])),
            groups="accent",
            temperature=2.0,
        )
    )
    assert {name: part.spec.weight for name, part in whole.items()} == {"(none)": 1, "scottish": 3, "welsh": 2}
    assert whole.keys() == split.keys()
    for name, part in whole.items():
        assert part.spec == split[name].spec
        np.testing.assert_array_equal(part.utterances, split[name].utterances)


def test_the_groups_of_a_source_with_a_rate_share_it_as_seqio_shares_the_rate_of_a_mixture_in_a_mixture():
    table = table_of(("a", "proportional", ["x"] * 4), ("b", 8.0, ["x"] * 16 + ["y"] * 4))
    found = _by_name(parts_of(table, groups="accent", temperature=2.0))
    _, seqio = mixtures.libraries()

    def task(name, rows):
        counts = {"splits": ["train"], "num_input_examples": {"train": rows}}
        source = seqio.FunctionDataSource(lambda split, shuffle_files: None, **counts)
        return seqio.Task(name, source=source, output_features={}, preprocessors=[])

    def by_size(task):
        return seqio.mixing_rate_num_examples(task, temperature=2.0)

    inside = seqio.Mixture("b", [(task("b:x", 16), by_size), (task("b:y", 4), by_size)])
    outside = seqio.Mixture("all", [(task("x", 4), by_size), (inside, 8.0)])
    rates = {one.name.replace(":", "/"): outside.get_rate(one) for one in outside.tasks}
    assert {name: part.spec.weight for name, part in found.items()} == pytest.approx(rates)
    assert found["b/x"].utterances.tolist() == list(range(4, 20))


def test_the_groups_hold_every_utterance_once():
    random = np.random.default_rng(0)
    accents = [None if value == 5 else f"accent{value}" for value in random.integers(0, 6, 500).tolist()]
    table = table_of(("a", "proportional", accents[:200]), ("b", 3.0, accents[200:350]), ("c", 1, accents[350:]))
    parts = parts_of(table, groups="accent", temperature=3.0, cap_rows=7)
    held = np.concatenate([part.utterances for part in parts])
    assert sorted(held.tolist()) == list(range(500))
    for part in parts:
        values = {table.utterances[row].tag("accent") or groups.WITHOUT for row in part.utterances.tolist()}
        assert values == {part.spec.name.split("/")[-1]}


def test_what_is_drawn_is_within_three_standard_deviations_of_what_was_asked():
    rows = {"big": 60_000, "middle": 3_000, "small": 60, "one": 1}
    for temperature, cap in ((1.0, 0), (2.0, 0), (5.0, 1_000), (1.0, 3_000)):
        specs = [SourceSpec(n, r, rate_by_size(r, temperature=temperature, cap_rows=cap)) for n, r in rows.items()]
        count = 100_000
        found = np.asarray(mixtures.draws_before(specs, count, seed=1))
        asked = np.asarray([spec.weight for spec in specs]) / sum(spec.weight for spec in specs)
        deviations = np.abs(found - count * asked) / np.sqrt(count * asked * (1 - asked))
        assert found.sum() == count and deviations.max() < 3, (temperature, cap, found)


def test_256_groups_are_drawn_as_asked():
    sizes = [max(1, 20_000 // (number + 1)) for number in range(256)]
    specs = [SourceSpec(f"group {i}", rows, rate_by_size(rows, temperature=3.0)) for i, rows in enumerate(sizes)]
    found = np.asarray(mixtures.draws_before(specs, 100_000, seed=2))
    expected = np.cbrt(sizes) / np.cbrt(sizes).sum() * 100_000
    # The sum of squares that the chi-squared test takes, whose mean is 255 and whose variance is 510.
    assert abs(((found - expected) ** 2 / expected).sum() - 255) < 3 * np.sqrt(510)
    assert found.min() > 0


def test_a_cap_is_of_rates_and_every_row_still_comes_once_an_epoch():
    specs = [SourceSpec("big", 300, rate_by_size(300, cap_rows=20)), SourceSpec("small", 20, rate_by_size(20))]
    assert specs[0].weight == specs[1].weight == 20
    references = itertools.islice(ReferenceStream(specs, seed=0), 1500)
    drawn = [row for source, row, epoch in references if source == epoch == 0]
    assert sorted(drawn) == list(range(300))


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"groups": "acent"},
            "data.groups = 'acent': no usable training .* has this tag; did you mean 'accent'",
        ),
        ({"temperature": 5.0}, "data.temperature = 5: there is one source, and so nothing to mix; needed: data.groups"),
        ({"cap_rows": 9}, "data.cap_rows = 9: there is one source"),
    ],
)
def test_settings_that_mix_nothing_are_one_clear_line(settings, message):
    with pytest.raises(UserError, match=message):
        parts_of(table_of(("a", "proportional", ["x", "y"])), **settings)


def test_one_group_alone_is_mixed_with_nothing():
    table = table_of(("a", "proportional", ["x", "x"]))
    for settings in ({"temperature": 5.0}, {"cap_rows": 1}):
        with pytest.raises(UserError, match="data.groups = 'accent': all utterances are in one group, 'x', and so"):
            parts_of(table, groups="accent", **settings)
    assert [part.spec.name for part in parts_of(table, groups="accent")] == ["x"]


def test_a_temperature_that_changes_no_rate_is_one_clear_line():
    table = table_of(("a", 2, ["x", "y"]), ("b", 1.0, ["x"]))
    with pytest.raises(
        UserError, match="data.temperature = 5: the rates of all sources are numbers, which it does not"
    ):
        parts_of(table, temperature=5.0)
    assert len(parts_of(table, temperature=5.0, groups="accent")) == 3


def test_a_source_of_which_nothing_is_usable_is_named_with_groups_as_without():
    for rate in ("proportional", 2.0):
        table = table_of(("a", "proportional", ["x", "y"]), ("b", rate, ["long"]))
        with pytest.raises(UserError, match="source 'b' has no usable utterance"):
            parts_of(table, groups="accent")


def test_values_of_utterances_that_are_left_out_make_no_group():
    table = table_of(("a", "proportional", ["x", "y", "long", "x"]), ("b", "proportional", ["y", "z", None]))
    found = _by_name(parts_of(table, groups="accent"))
    assert {name: part.utterances.tolist() for name, part in found.items()} == {
        "(none)": [5],
        "x": [0, 2],
        "y": [1, 3],
        "z": [4],
    }


def test_too_many_groups_and_names_that_do_not_print_are_one_clear_line():
    many = table_of(("a", "proportional", [f"{i}" for i in range(257)]))
    with pytest.raises(UserError, match="'accent': 257 groups; allowed: at most 256"):
        parts_of(many, groups="accent")
    assert len(parts_of(table_of(("a", "proportional", [f"{i}" for i in range(256)])), groups="accent")) == 256
    for name in ("a\nb", "x" * 201):
        with pytest.raises(UserError, match="a group cannot have the name .*allowed: printable"):
            parts_of(table_of(("a", "proportional", [name, "b"])), groups="accent")


def test_parts_that_differ_in_a_rate_or_in_one_utterance_have_other_digests():
    table = table_of(("a", "proportional", ["x", "y", "x", "z"]))
    parts = parts_of(table, groups="accent")
    assert groups.digest(parts) == groups.digest(parts_of(table, groups="accent"))
    others = [parts_of(table, groups="accent", temperature=2.0), parts_of(table, groups="speaker"), parts_of(table)]
    assert len({json.dumps(groups.digest(other)) for other in (parts, *others)}) == 4
