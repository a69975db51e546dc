"""One line of a manifest: an utterance, or what is known of one that cannot be used; and an utterance in memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np


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
      labelled: whether its text is that of its samples, which is not so of a part of a long utterance.
    """

    labelled: ClassVar[bool] = True
    audio_filepath: str
    duration: float
    text: str
    offset: float = 0.0
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)
    key: str = ""
    source: str = ""
    line: int = 0

    def tag(self, name: str) -> str | None:
        """The value of a tag as text; None where there is no such tag, or no value: null, white space, a container."""
        return tag_value(self.tags, name)

    @property
    def sound_file(self) -> str:
        """Path or URI of the file that its samples are read from: of the address of a record, the shard."""
        path, mark, record = self.audio_filepath.rpartition("#")
        return path if mark and record.isdecimal() and ".array_record-" in path else self.audio_filepath

    def as_line(self) -> dict[str, Any]:
        """What a manifest says of it, wherever that lies; but its tags."""
        line = {"audio_filepath": self.audio_filepath, "duration": self.duration, "text": self.text}
        return line | ({"offset": self.offset} if self.offset else {})


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Recording(Utterance):
    """An utterance whose sound is in memory, and in no file.

    Attributes:
      samples: float32 [S], mono, full scale 1, all finite.
      sample_rate: Hz, of the samples.
    """

    samples: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    sample_rate: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """One line of a manifest that is no usable utterance, whatever its audio is.

    Attributes:
      key: the path as the manifest has it; where it has none, the manifest and the line.
      why: "kind: detail", as the data report has them.
      tags: every field of the line that is no part of the utterance itself; none where the line is no object.
    """

    key: str
    why: str
    tags: dict[str, Any] = dataclasses.field(default_factory=dict)

    def tag(self, name: str) -> str | None:
        """As `Utterance.tag`."""
        return tag_value(self.tags, name)


def tag_value(tags: Mapping[str, Any], name: str) -> str | None:
    """As `Utterance.tag`, of the tags of one."""
    value = tags.get(name)
    text = "" if value is None or isinstance(value, list | dict) else str(value)
    return text if text.strip() else None
