"""An example of a corpus, as it comes from its source: sound, text and tags, not checked yet."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One utterance of a corpus.

    Attributes:
      id: its name, which is the same wherever the corpus lies.
      audio: a sound file as bytes, in a format that `soundfile` reads; or samples, `[S]` or `[S, channels]`, integers
        at the full scale of their dtype or floats at full scale 1.
      sample_rate: Hz, of samples; 0 where the sound file says it.
      text: the transcript as the corpus has it.
      tags: everything else that is known of it, such as `speaker`.
    """

    id: str
    audio: bytes | np.ndarray
    sample_rate: int
    text: str
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)
