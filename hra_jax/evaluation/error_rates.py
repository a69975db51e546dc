"""Word and character error rates: counts that add up.

Rates are fractions, not percent: 0.05 is five errors in a hundred reference words. Insertions can take them past 1.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import kaldialign

from hra_jax.errors import UserError
from hra_jax.text.normalization import normalize_text


@dataclasses.dataclass(frozen=True)
class ErrorCounts:
    """Errors of one or more utterances; `+` adds two of them, so parts of a test set can be counted anywhere.

    Attributes:
      substitutions: reference units that were recognised as another one.
      deletions: reference units that are missing.
      insertions: recognised units that the reference does not have.
      words: reference units: words for a word error rate, characters for a character error rate.
      utterances: the number of utterances counted.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    words: int = 0
    utterances: int = 0

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        if not isinstance(other, ErrorCounts):
            return NotImplemented
        fields = (field.name for field in dataclasses.fields(self))
        return ErrorCounts(**{name: getattr(self, name) + getattr(other, name) for name in fields})

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference unit.

        Raises:
          UserError: the references have no units, so that there is no rate.
        """
        if not self.words:
            raise UserError(
                f"no error rate: the references of {self.utterances} utterances hold 0 words; need 1 or more"
            )
        return self.errors / self.words


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The sum of counts; of none, zeros."""
    return sum(counts, ErrorCounts())


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    found = kaldialign.edit_distance(reference, hypothesis)
    return ErrorCounts(
        substitutions=found["sub"],
        deletions=found["del"],
        insertions=found["ins"],
        words=len(reference),
        utterances=1,
    )


def words(text: str, normalizer: str) -> list[str]:
    """The words of a text as they are compared: normalised, then split at white space."""
    return normalize_text(text, normalizer).split()


def word_errors(reference: str, hypothesis: str, *, normalizer: str) -> ErrorCounts:
    """Counts of a least-errors word alignment of one utterance.

    Args:
      reference: what was said.
      hypothesis: what was recognised.
      normalizer: a name as `hra_jax.text.normalization.versioned` takes it, applied to both texts.

    Raises:
      UserError: an unknown normalizer.
    """
    return _count(words(reference, normalizer), words(hypothesis, normalizer))


def character_errors(reference: str, hypothesis: str, *, normalizer: str) -> ErrorCounts:
    """As `word_errors`, over characters; one space stands between two words and counts as a character."""
    return _count(list(" ".join(words(reference, normalizer))), list(" ".join(words(hypothesis, normalizer))))


@functools.lru_cache(maxsize=2**15)
def errors_by_metric(reference: str, hypothesis: str, normalizer: str) -> dict[str, ErrorCounts]:
    """{"wer": `word_errors`, "cer": `character_errors`} of one utterance; results and reports ask for it in turn."""
    return {
        "wer": word_errors(reference, hypothesis, normalizer=normalizer),
        "cer": character_errors(reference, hypothesis, normalizer=normalizer),
    }


def macro_rate(tasks: Iterable[ErrorCounts]) -> float:
    """The mean over tasks of each task's own rate: every task weighs the same, whatever its size.

    Raises:
      UserError: no task, or a task without reference words.
    """
    rates = [counts.rate for counts in tasks]
    if not rates:
        raise UserError("no macro error rate: 0 tasks were scored; need 1 or more")
    return sum(rates) / len(rates)
