"""What results say of how a suite was decoded."""

from typing import NamedTuple

from hra_jax.data.utterance import Utterance
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.settings import decode_settings
from hra_jax.run import decoders
from hra_jax.text.vocabularies import CharacterVocabulary

LETTERS = CharacterVocabulary(" abcdefgh")


class Table(NamedTuple):
    """Of a table, what is looked at."""

    utterances: list[Utterance]
    source: list[int]

    def __len__(self):
        """How many utterances there are."""
        return len(self.utterances)


class Runner:
    """A suite of one task, whose utterances have these keys and phrases."""

    def __init__(self, *rows):
        self.adapters, self._phrases = ["a"], [phrases for _, phrases in rows]
        self.table = Table([Utterance("a.wav", 1.0, "bad", key=key) for key, _ in rows], [0] * len(rows))

    def phrases_of(self, number):
        return self._phrases[number]


def facts(runner, **given):
    return decoders.facts_of(Decoder(decode_settings(given), vocabularies={"a": LETTERS}), runner)


def test_results_say_which_utterances_were_searched_and_that_the_others_were_not():
    some, all_of_them = Runner(("x", ("bad",)), ("x", ("bad",)), ("y", ())), Runner(("x", ("bad", "egg")))
    searched = {"method": "beam", "beam": 16, "token_bonus": 0.0, "phrase_weight": 1.5, "utterances_with_phrases": 1}
    # Two of them are parts of one.
    assert facts(some) == searched | {"others": "greedy"}
    assert facts(all_of_them) == searched
    assert facts(some, beam=8) == searched | {"beam": 8}
    assert facts(Runner(("y", ()))) == {"method": "greedy"}
