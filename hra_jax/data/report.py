"""Reports of unusable data: counted by kind, named, and written once."""

import json
import threading
from typing import Any

from etils import epath

from hra_jax.console import printable
from hra_jax.errors import UserError
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import check_fields, read_object

_MOST_BYTES = 2**30  # of a stored report
_MOST = 1000  # characters of a name or a detail
KINDS = (
    "bad_json",  # a line of a manifest is not a JSON object
    "missing_field",  # a line lacks a field, or its value is of the wrong type
    "missing_file",  # the audio file is not there
    "empty_audio",  # no samples
    "undecodable_audio",  # not audio, truncated, or not readable
    "unreachable_audio",  # a kind of address that is not read, or storage that does not answer
    "nan_samples",  # NaN or infinity among the samples
    "silent_audio",  # channels in opposite phase, whose mean is silence
    "unreadable_text",  # a transcript that is not UTF-8, or cannot be read
    "no_text",  # what is imported has no transcript, or its corpus says that it is none
    "command",  # what is imported is the output of a command, and commands of a corpus are not run
    "too_short",  # fewer frames than CTC needs for the transcript
    "too_long",  # longer than the limit
    "not_finite",  # in a training batch whose loss or a gradient was not finite; its step was skipped
    "unknown_text",  # a warning: characters outside the vocabulary were dropped, the utterance is kept
)


class DataReport:
    """Collects bad utterances; safe to use from several threads.

    Args:
      strict: whether anything bad is an error at once.

    Attributes:
      mixture: what was drawn of the mixture, beside what was asked (`drawn.to_json`); None where there is nothing to
        tell. It is kept as it is read.
    """

    def __init__(self, *, strict: bool = False):
        self.strict = strict
        self.mixture: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._details: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
        self._told: set[tuple[str, str]] = set()  # (kind, name) of what `news` gave already, or others told

    def add(self, kind: str, name: str, detail: str = "") -> None:
        """Notes one bad utterance; the same kind and name again (a later epoch, another thread) changes nothing.

        Args:
          kind: one of KINDS.
          name: of the utterance or the line of a manifest.
          detail: one line that says what is wrong.

        Raises:
          ValueError: no such kind.
          UserError: the report is strict.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of bad data {kind!r}; allowed: {', '.join(KINDS)}")
        with self._lock:
            self._details[kind].setdefault(name, detail)
        if self.strict:
            raise UserError(f"{kind}: {name}: {detail} (bad data is an error here, because data.strict is on)")

    def add_why(self, name: str, why: str) -> None:
        """As `add`, of what `Refused.why` and the index of shards say: "kind: detail"."""
        kind, _, detail = why.partition(": ")
        self.add(kind if kind in KINDS else "undecodable_audio", name, detail)

    def counts(self) -> dict[str, int]:
        """Number of distinct names by kind, every kind of KINDS included."""
        with self._lock:
            return {kind: len(names) for kind, names in self._details.items()}

    def to_json(self) -> dict:
        """`{"counts": {kind: n}, "utterances": {kind: [{"name", "detail"}, ...]}}`: sorted names, no empty kinds.

        With `"mixture"` beside them where there is something to tell of it.
        """
        with self._lock:
            utterances = {
                kind: [
                    {"name": printable(name, most=_MOST), "detail": printable(names[name], most=_MOST)}
                    for name in sorted(names)
                ]
                for kind, names in self._details.items()
                if names
            }
        mixture = {} if self.mixture is None else {"mixture": self.mixture}
        return {"counts": {kind: len(rows) for kind, rows in utterances.items()}, "utterances": utterances} | mixture

    def write(self, path: epath.PathLike) -> None:
        """Writes `to_json` to a file; a process killed meanwhile leaves the old content or the new, never a part."""
        write_file(path, json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")

    def read(self, path: epath.PathLike) -> None:
        """Adds what the file of another report holds.

        Raises:
          UserError: it is no report.
        """
        content = read_object(path, {"utterances": dict}, most_bytes=_MOST_BYTES)
        for kind, rows in content["utterances"].items():
            if kind not in KINDS or not isinstance(rows, list):
                raise UserError(f"{path}: utterances.{kind} = {rows!r:.80}; allowed: lists of {', '.join(KINDS)}")
            for row in rows:
                check_fields(row, {"name": str, "detail": str}, where=f"{path}: utterances.{kind}")
        self.merge(content)
        mixture = content.get("mixture")
        self.mixture = mixture if isinstance(mixture, dict) else None

    def merge(self, content: dict) -> None:
        """Adds what another report's `to_json` holds (another process's, or an earlier run's), strict or not."""
        with self._lock:
            for kind, rows in content["utterances"].items():
                for row in rows:
                    self._details[kind].setdefault(row["name"], row["detail"])
                    self._told.add((kind, row["name"]))

    def news(self) -> dict:
        """What was noted since this was last called and came from no other report, in the form of `to_json`."""
        with self._lock:
            found = {
                kind: [
                    {"name": name, "detail": detail}
                    for name, detail in sorted(names.items())
                    if (kind, name) not in self._told
                ]
                for kind, names in self._details.items()
            }
            found = {kind: rows for kind, rows in found.items() if rows}
            self._told.update((kind, row["name"]) for kind, rows in found.items() for row in rows)
        return {"counts": {kind: len(rows) for kind, rows in found.items()}, "utterances": found}

    def reasons(self) -> dict[str, str]:
        """{name: "kind: detail"} of what cannot be used; of a name that has several kinds one is told."""
        with self._lock:
            return {
                name: f"{kind}: {detail}"
                for kind, names in reversed(self._details.items())
                for name, detail in names.items()
            }

    def summary(self) -> str:
        """One line: how many of each kind, with an example of each; "no bad data" if there is none."""
        parts = []
        for kind, rows in self.to_json()["utterances"].items():
            parts.append(f"{len(rows)} {kind} (such as {rows[0]['name']})")
        return "; ".join(parts) if parts else "no bad data"
