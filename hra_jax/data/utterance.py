"""One utterance of a manifest."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a manifest.

    Attributes:
      audio_filepath: absolute path or URI.
      duration: seconds, above 0.
      text: the transcript as written.
      offset: where the utterance begins in its file, seconds.
      tags: every other field of the line.
      key: a name that stays the same wherever the data lies: the path as the manifest has it, with `@offset+duration`
        where the line has an offset.
      source: the manifest.
      line: its line, from 1.
    """

    audio_filepath: str
    duration: float
    text: str
    offset: float = 0.0
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)
    key: str = ""
    source: str = ""
    line: int = 0

    def tag(self, name: str) -> str | None:
        """The value of a tag as text; None where there is no such tag, or nothing in it: null, or white space alone."""
        value = self.tags.get(name)
        text = "" if value is None else str(value)
        return text if text.strip() else None
