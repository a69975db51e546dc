"""How many texts of a suite were trained on: a model that has seen a sentence recognises it more easily."""

from collections.abc import Iterable

from hra_jax.evaluation.suites import Suite
from hra_jax.text.normalization import normalize_text


def known_texts(suite: Suite, training: Iterable[str]) -> dict[str, int]:
    """Counts the utterances of a suite whose text is one of the training, whoever says it.

    The same words said by others are no leak, but say how new the sentences of a test are. Texts without words are left
    out.

    Args:
      suite: its normalizer is applied to all texts.
      training: the texts of the training, not normalised.

    Returns:
      {"utterances": those with words, "known": of them those whose text occurs in the training, "texts": distinct
      texts, "texts_known": of them those that occur there}, as results.json has them in "texts_in_training".
    """
    there = {normalize_text(text, suite.normalizer) for text in training}
    said = [text for row in suite.utterances if (text := normalize_text(row.text, suite.normalizer)).strip()]
    distinct = set(said)
    return {
        "utterances": len(said),
        "known": sum(text in there for text in said),
        "texts": len(distinct),
        "texts_known": len(distinct & there),
    }
