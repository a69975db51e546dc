"""A table of utterances without audio, for what mixes them: speakers with accents."""

from hra_jax.data.report import DataReport
from hra_jax.data.sources import TableSource
from hra_jax.data.utterance import Utterance
from hra_jax.data.utterance_table import UtteranceTable
from hra_jax.text.vocabularies import CharacterVocabulary


def table_of(*sources):
    """A table of sources, (name, rate, accents of their utterances); None is an utterance without an accent.

    One of the accent "long" is too long to be used.
    """
    read = []
    for name, rate, accents in sources:
        tags = [{"speaker": f"{name}{i % 3}"} | ({"accent": value} if value else {}) for i, value in enumerate(accents)]
        seconds = [9.0 if value == "long" else 1.0 for value in accents]
        rows = [Utterance(f"/{name}/{i}.wav", seconds[i], "yes", tags=found) for i, found in enumerate(tags)]
        read.append(TableSource(name, rows, rate))
    return UtteranceTable(
        read,
        vocabulary=CharacterVocabulary(),
        normalizer="basic",
        task_tag="speaker",
        max_seconds=2.0,
        sample_rate=8000,
        output_length=lambda samples: samples // 160,
        report=DataReport(),
    )
