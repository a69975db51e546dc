"""Flags that say how to decode, written as in a configuration."""

import shlex

import pytest
from absl import flags

from hra_jax.decoding import flags as decode_flags
from hra_jax.errors import UserError
from hra_jax.evaluation.report import evaluation_command


def given(*words):
    """What a command with these words is asked for."""
    values = flags.FlagValues()
    decode_flags.define_flags(values)
    values(["program", *words])
    return decode_flags.asked(values)


def test_values_are_numbers_words_paths_and_tuples():
    assert given() == {}
    words = ["--decode.lm=train", "--decode.beam=8", "--decode.lm_weight=0.5", "--decode.token_bonus=tuned"]
    assert given(*words, "--decode.phrases=('new york', ('anna', 2.0))") == {
        "beam": 8,
        "lm": "train",
        "lm_weight": 0.5,
        "token_bonus": "tuned",
        "phrases": ("new york", ("anna", 2.0)),
    }
    assert given("--decode.lm=(('ann', 'a.lm'), ('bob', 'train'))") == {"lm": (("ann", "a.lm"), ("bob", "train"))}
    assert given("--decode.phrases=words.txt", "--decode.lm=") == {"lm": "", "phrases": "words.txt"}
    assert given("--decode.lm='a.lm'", "--decode.token_bonus='tuned'") == {"lm": "a.lm", "token_bonus": "tuned"}
    assert given("--decode.lm=''") == {"lm": ""}


def test_what_the_help_tells_to_write_is_taken():
    values = flags.FlagValues()
    decode_flags.define_flags(values)
    for name, key in (("decode.lm", "lm"), ("decode.phrases", "phrases")):
        examples = values[name].help.rpartition("Such as ")[2].removesuffix(".").split(", --")
        assert len(examples) == 2
        for example in examples:
            (word,) = shlex.split(f"--{example.removeprefix('--')}")
            assert isinstance(given(word)[key], tuple) == ("(" in word)


@pytest.mark.parametrize("word", ["--decode.beam=-1", "--decode.lm_weight=nan", "--decode.beam=wide"])
def test_a_value_that_is_not_allowed_is_one_line(word):
    with pytest.raises(UserError, match=word[2:].split("=")[0]) as error:
        given(word)
    assert "\n" not in str(error.value)


def test_the_command_that_repeats_an_evaluation_decodes_as_it_did():
    asked = {"lm": "", "phrases": ("new york", ("it's", 2.0)), "lm_weight": 0.5}
    words = shlex.split(
        evaluation_command(workdir="W", **{f"decode.{key}": str(value) for key, value in asked.items()})
    )
    assert given(*(word for word in words if word.startswith("--decode."))) == asked
