"""How many texts of a suite were trained on: a model that has seen a sentence recognises it more easily."""

from collections.abc import Iterable, Sequence

from hra_jax.data.columns import texts_of
from hra_jax.data.utterance import Utterance
from hra_jax.evaluation.suites import Suite
from hra_jax.text.normalization import normalize_text, normalize_texts


def known_texts(suite: Suite, training: Iterable[Sequence[Utterance]]) -> dict[str, int]:
    """Counts the utterances of a suite whose text is one of the training, whoever says it.

    The same words said by others are no leak, but say how new the sentences of a test are. Texts without words are left
    out.

    Args:
      suite: its normalizer is applied to all texts.
      training: what was trained on, by source.

    Returns:
      {"utterances": those with words, "known": of them those whose text occurs in the training, "texts": distinct
      texts, "texts_known": of them those that occur there}, as results.json has them in "texts_in_training".
    """
    said = [text for row in suite.utterances if (text := normalize_text(row.text, suite.normalizer)).strip()]
    distinct = set(said)
    there: set[str] = set()  # of them: the training may have a million others
    for texts in texts_of(training):
        there.update(distinct.intersection(normalize_texts(texts, suite.normalizer)))
    return {
        "utterances": len(said),
        "known": sum(text in there for text in said),
        "texts": len(distinct),
        "texts_known": len(there),
    }
