"""How decoding is asked for: from a configuration, from a suite, and from Python."""

import math

import pytest

from hra_jax.cli import _OneOfTypes
from hra_jax.config.files import load_config
from hra_jax.config.keys import group
from hra_jax.decoding.settings import DecodeSettings, decode_settings
from hra_jax.errors import UserError


def refusal(**values):
    with pytest.raises(UserError) as caught:
        decode_settings(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_configuration_a_suite_and_python_give_the_same_settings():
    config = load_config("base").unlock()
    config.decode.lm, config.decode.lm_weight = (("a", "one.lm"), ("b", "train")), 0.5
    config.decode.phrases = (("a", ("new york",)),)
    wanted = DecodeSettings(lm=(("a", "one.lm"), ("b", "train")), lm_weight=0.5, phrases=(("a", ("new york",)),))
    values = {"lm": {"a": "one.lm", "b": "train"}, "lm_weight": 0.5, "phrases": {"a": ["new york"]}}
    assert group(config, "decode") == decode_settings(values) == decode_settings(tuple(values.items())) == wanted
    assert decode_settings(wanted) is wanted
    assert decode_settings({"beam": 4}, base=wanted) == DecodeSettings(
        beam=4, lm=wanted.lm, lm_weight=0.5, phrases=wanted.phrases
    )
    assert decode_settings(None) == DecodeSettings()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lm_weight": math.nan}, "decode.lm_weight = nan: allowed: a number of at least 0"),
        ({"lm_weight": math.inf}, "decode.lm_weight = inf"),
        ({"token_bonus": -math.inf}, "decode.token_bonus = -inf"),
        ({"phrase_weight": -1.0}, "decode.phrase_weight = -1.0"),
        ({"phrase_weight": "tunde"}, "decode.phrase_weight = 'tunde': allowed"),
        ({"lm_weight": True}, "decode.lm_weight = True"),
        ({"beam": -1}, "decode.beam = -1: allowed: an integer of at least 0 and at most 1024"),
        ({"beam": 4, "n_best": 5}, "decode.n_best = 5: allowed: at most decode.beam, which is 4"),
        ({"lm": (("a", "x.lm"), ("a", "y.lm"))}, "each task once"),
        ({"lm": (("a", 1),)}, "decode.lm = (('a', 1),)"),
        ({"lm": ()}, "decode.lm = ()"),
        ({"phrases": ("anna", 2.0)}, "decode.phrases = ('anna', 2.0): allowed: a tuple of phrases"),
        ({"phrases": ((1, ("x",)),)}, "decode.phrases = ((1, ('x',)),)"),
        ({"phrases": (("a", ("x",)), ("a", ("y",)))}, "decode.phrases"),
        ({"lm_wieght": 1.0}, "unknown key 'lm_wieght'; did you mean 'lm_weight'?"),
    ],
)
def test_what_is_not_allowed_is_one_line_that_names_it(given, words):
    assert words in refusal(**given)


def test_phrases_may_have_weights():
    wanted = DecodeSettings(phrases=("boston", ("anna", 2.0)))
    assert decode_settings({"phrases": ["boston", ["anna", 2.0]]}) == wanted
    by_task = DecodeSettings(phrases=(("a", ("boston", ("anna", 2.0))), ("b", "names.txt")))
    assert decode_settings({"phrases": {"a": ["boston", ["anna", 2.0]], "b": "names.txt"}}) == by_task


def test_pairs_of_a_suite_are_checked_as_such():
    for given, words in (
        ("beam", "suite 'x', decode = 'beam': allowed: pairs"),
        ((("beam", 4), ("beam", 5)), "suite 'x', decode: the key 'beam' is given twice"),
        ((("beam", 4, 5),), "allowed: pairs"),
        ((("beam", -4),), "suite 'x', decode: decode.beam = -4"),
    ):
        with pytest.raises(UserError) as caught:
            decode_settings(given, where="suite 'x', decode")
        assert words in str(caught.value)


def test_nothing_given_is_greedy_and_anything_to_search_with_a_beam_of_16():
    assert DecodeSettings().width(phrases=False) == 0
    assert DecodeSettings().width(phrases=True) == 16
    assert DecodeSettings(lm="x.lm").width(phrases=False) == 16
    assert DecodeSettings(n_best=3).width(phrases=False) == 16
    assert DecodeSettings(n_best=30).width(phrases=False) == 30
    assert DecodeSettings(beam=4, lm="x.lm").width(phrases=True, tuned=8) == 4
    assert DecodeSettings(lm="x.lm").width(phrases=False, tuned=8) == 8
    assert DecodeSettings(lm="x.lm", n_best=10).width(phrases=False, tuned=8) == 10
    assert DecodeSettings().width(phrases=False, tuned=8) == 0


def test_what_is_for_all_tasks_and_what_is_for_some():
    assert DecodeSettings(lm="x.lm").model_of("a") == "x.lm"
    assert [DecodeSettings(lm=(("a", "x.lm"),)).model_of(task) for task in "ab"] == ["x.lm", None]
    assert DecodeSettings(phrases=("x", "y")).phrases_of("a") == ("x", "y")
    assert DecodeSettings(phrases="names.txt").phrases_of("a") == "names.txt"
    some = DecodeSettings(phrases=(("a", ("x", "y")), ("b", "names.txt")))
    assert [some.phrases_of(task) for task in "abc"] == [("x", "y"), "names.txt", ()]


def test_files_are_those_of_models_and_phrases_that_are_named():
    assert DecodeSettings(lm="train").files == DecodeSettings(phrases=("a.txt",)).files == DecodeSettings().files == []
    some = DecodeSettings(lm=(("a", "x.lm"), ("b", "adapter"), ("c", "")), phrases=(("a", "p.txt"), ("b", ("q",))))
    assert some.files == ["p.txt", "x.lm"]
    assert DecodeSettings(lm="x.lm", phrases="p.txt").files == ["p.txt", "x.lm"]


def test_a_weight_that_would_weigh_nothing_is_refused():
    for given, phrases, why in (
        ({"lm_weight": 0.5}, True, "decode.lm_weight = 0.5 would do nothing: decode.lm names no language model"),
        ({"phrase_weight": 2.0, "lm": "x.lm"}, False, "decode.phrase_weight = 2.0 would do nothing: there are no phr"),
        ({"token_bonus": 1.0}, False, "decode.token_bonus = 1.0 would do nothing: decoding is greedy"),
    ):
        with pytest.raises(UserError) as caught:
            DecodeSettings(**given).check_used(phrases=phrases)
        assert why in str(caught.value)
        DecodeSettings(**given).check_used(("beam",), phrases=phrases)  # not what is looked at
    DecodeSettings(lm="x.lm", lm_weight=0.5, token_bonus=1.0).check_used(phrases=False)
    DecodeSettings(phrases=("x",), phrase_weight=2.0, token_bonus=1.0).check_used(phrases=False)
    DecodeSettings(phrase_weight=2.0, token_bonus=1.0).check_used(phrases=True)
    DecodeSettings(beam=4, token_bonus=1.0).check_used(phrases=False)


def test_models_and_phrases_of_tasks_that_there_are_not_are_refused_with_near_matches():
    for given, told in (
        ({"lm": (("anna", "x.lm"), ("bop", ""))}, "decode.lm: unknown task 'bop'; did you mean 'bob'?"),
        ({"phrases": (("ana", ("x",)),)}, "decode.phrases: unknown task 'ana'; did you mean 'anna'?"),
    ):
        with pytest.raises(UserError) as caught:
            DecodeSettings(**given).check_tasks(["anna", "bob"])
        assert told in str(caught.value)
    for given in ({"lm": "x.lm", "phrases": ("bop",)}, {"lm": (("anna", "x.lm"),), "phrases": "bop.txt"}, {}):
        DecodeSettings(**given).check_tasks(["anna", "bob"])


def test_words_numbers_and_tuples_of_the_command_line_are_what_they_look_like():
    weight, model, phrases = _OneOfTypes((str, int, float)), _OneOfTypes((str, tuple)), _OneOfTypes((tuple, str))
    assert [weight.parse(word) for word in ("0.5", "2", "tuned", "'tuned'")] == [0.5, 2, "tuned", "tuned"]
    assert [model.parse(word) for word in ("lm/a.lm", "train", "(('a', 'x.lm'),)", "7")] == [
        "lm/a.lm",
        "train",
        (("a", "x.lm"),),
        "7",
    ]
    assert phrases.parse("('new york', 'x')") == ("new york", "x")
    assert phrases.parse("names.txt") == "names.txt"
