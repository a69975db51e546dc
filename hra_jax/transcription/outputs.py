"""Where text goes: a file that grows line by line, or subtitles, a file for each recording.

An output may be begun by one process and finished by another, however the first one ended. Beside it lies what was
asked for (FILE.run.json, or run.json in a folder), and nobody goes on with anything else. Lines that are whole stay; a
line that was begun is cut off; and what could not be recognised is tried again.
"""

import collections
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from etils import epath

from hra_jax.console import printable, tell
from hra_jax.errors import UserError
from hra_jax.storage.files import GrowingFile, check_no_link, check_regular, real_path, remove_file, write_file
from hra_jax.storage.json_files import check_fields, json_text, parse_json, read_object
from hra_jax.tasks.names import AUTO_TASK
from hra_jax.transcription.requests import Request, Requests

TEXT, JSON_LINES, SUBTITLES = "text", "jsonl", ("srt", "vtt")
SHORT: Final = "short"  # JSON Lines without all that is not the text
FORMATS: Final = (TEXT, JSON_LINES, *SUBTITLES)
_RUN, _PARTS = "run.json", "parts.jsonl"
_SAME_SECONDS: Final = 1e-3  # by which words may overlap where two utterances meet


class Result(NamedTuple):
    """What came of a request.

    Attributes:
      request: the request.
      seconds: of audio; 0 where it could not be read.
      text: what was recognised; None where there is an error.
      task: what recognised it.
      error: "kind: detail", or ''.
      words: each with its text, start and end in its audio file (seconds) and confidence, where they were asked for.
      confidence: of the whole; None where it is not known.
      decoding: how it was decoded.
      alternatives: the best hypotheses, each with its text and score, where they were asked for.
    """

    request: Request
    seconds: float
    text: str | None
    task: str
    error: str = ""
    words: Sequence[Any] = ()
    confidence: float | None = None
    decoding: Mapping[str, Any] = {}
    alternatives: Sequence[Any] = ()


class Output(Protocol):
    """What takes results in their order.

    Attributes:
      sessions: the task that an earlier run has found for each session, as far as the output says it.
    """

    sessions: dict[str, str]

    def has(self, request: Request) -> bool:
        """Whether it has the result of a request from an earlier run; each is asked for once, in its order."""

    def write(self, result: Result) -> None:
        """Takes one. Raises OSError."""

    def flush(self) -> None:
        """Makes what was taken visible to others. Raises OSError."""

    def close(self) -> None:
        """Flushes, and ends. Raises OSError."""


def line_of(result: Result, form: str) -> str | None:
    """The line of a result in a format, without its end; None where that has none for errors."""
    if form == TEXT:
        return (
            None
            if result.text is None
            else f"{printable(result.request.key, most=None)}\t{printable(result.text, most=None)}"
        )
    if form == SHORT:
        found = {"text": result.text, "task": result.task} if result.text is not None else {"error": result.error}
        return json.dumps({"audio_filepath": result.request.key, **found}, ensure_ascii=False)
    request = result.request
    row: dict[str, Any] = {"audio_filepath": request.path}
    row |= {"key": request.key} if request.key != request.path else {}
    row |= {"offset": request.offset} if request.offset else {}
    row |= {"duration": round(result.seconds, 6)} if result.seconds else {}
    if result.text is None:
        row |= {"task": request.task, "error": result.error}
    else:
        row |= {"text": result.text, "task": result.task}
        row |= {"asked": request.task} if request.task != result.task else {}
        row |= {} if result.confidence is None else {"confidence": round(result.confidence, 4)}
        row["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            | ({} if word.confidence is None else {"confidence": round(word.confidence, 4)})
            for word in result.words
        ]
        if len(result.alternatives) > 1:
            row["alternatives"] = [
                {"text": other.text, "score": round(other.score, 4)} for other in result.alternatives
            ]
        row["decoding"] = dict(result.decoding)
    row |= {"session": request.session} if request.session else {}
    return json.dumps(row, ensure_ascii=False)


# --- Lines ------------------------------------------------------------------------------------------------------------


class Printed:
    """Lines on standard output."""

    def __init__(self, form: str):
        """Takes the format."""
        self._form, self.sessions = form, dict[str, str]()

    def has(self, request: Request) -> bool:
        """No."""
        del request
        return False

    def write(self, result: Result) -> None:
        """Prints it."""
        line = line_of(result, self._form)
        if line is not None:
            tell(line)

    def flush(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is left to do."""


class Lines:
    """Lines in a file, which an earlier run may have begun."""

    def __init__(self, path: str, form: str, run: Mapping[str, Any]):
        """Opens the file; the lines of an earlier run stay that are whole and hold a text.

        Args:
          path: the file.
          form: its format.
          run: what was asked for, as JSON has it.

        Raises:
          UserError: it is there and is of another command, or was begun with another run.
          OSError: it cannot be read or written.
        """
        self._path, self._form = epath.Path(path), form
        self.sessions: dict[str, str] = {}
        check_no_link(self._path)
        _claim(_beside(path, form, _RUN), path, run, begun=self._path.exists() and self._path.stat().length > 0)
        content, self._done = self._kept()
        self._file = GrowingFile(self._path, content=content)

    def _kept(self) -> tuple[bytes, "collections.Counter[tuple[str, str]]"]:
        if not self._path.exists():
            return b"", collections.Counter()
        check_regular(self._path)
        old = self._path.read_bytes()
        names: collections.Counter[tuple[str, str]] = collections.Counter()
        kept = []
        for number, line in enumerate(old[: old.rfind(b"\n") + 1].splitlines(keepends=True), start=1):
            name = self._name_in(line, where=f"{self._path}:{number}")
            if name is not None:
                names[name] += 1
                kept.append(line)
        content = b"".join(kept)
        if content != old:
            write_file(self._path, content)
        return content, names

    def _name_in(self, line: bytes, *, where: str) -> tuple[str, str] | None:
        """What names the request of a line; None of one that is to be tried again."""
        if self._form == TEXT:
            key, tab, _ = line.partition(b"\t")
            if not tab:
                raise UserError(f"{where} is {printable(line)!r}; needed: a line of this command, file and text")
            return key.decode("utf-8", "replace"), ""
        row = check_fields(parse_json(line, where=where), {"audio_filepath": str, "task": str}, where=where)
        if "error" in row:
            return None
        if row.get("asked") == AUTO_TASK and "session" in row:
            self.sessions[str(row["session"])] = row["task"]
        return str(row.get("key", row["audio_filepath"])), str(row.get("asked", row["task"]))

    def has(self, request: Request) -> bool:
        """As `Output.has`; of several requests that are alike, as many as there are lines."""
        name = (printable(request.key, most=None), "") if self._form == TEXT else (request.key, request.task)
        if not self._done[name]:
            return False
        self._done[name] -= 1
        return True

    def write(self, result: Result) -> None:
        """As `Output.write`."""
        line = line_of(result, self._form)
        if line is not None:
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")

    def flush(self) -> None:
        """As `Output.flush`; to a bucket once a minute at most."""
        self._file.flush_if_cheap()

    def close(self) -> None:
        """As `Output.close`."""
        self._file.close()


# --- Subtitles --------------------------------------------------------------------------------------------------------


class _Recording(NamedTuple):
    """What becomes one file of subtitles.

    Attributes:
      file: of the subtitles.
      said: what is written down of it beside them: `audio`, what names the recording, and `parts`, which of it.
    """

    file: epath.Path
    said: dict[str, str]


class SubtitleFiles:
    """A file of subtitles for each recording, written when all of its utterances are recognised.

    Recordings go by their names below a folder of results. Beside the files stands which parts of which recording each
    of them holds (FILE.parts.jsonl, or parts.jsonl in a folder). Where that is not what is asked for, the file is
    removed, then its new parts are written down, and then the file: whenever a process is killed, what is there is what
    is said of it. In a bucket files wait for the upload of what is said of them.
    """

    def __init__(self, path: str, form: str, run: Mapping[str, Any], requests: Requests):
        """Looks for what an earlier run wrote.

        Args:
          path: the folder; of a single recording the file may be given, with the suffix of the format.
          form: srt or vtt.
          run: what was asked for, as JSON has it.
          requests: all of them.

        Raises:
          UserError: two recordings would be one file, or files are there that another command or run wrote.
          OSError: they cannot be read or written.
        """
        self._form = form
        self._left: collections.Counter[str] = collections.Counter()
        parts: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
        recordings: dict[str, Request] = {}
        for request in requests.make():
            self._left[request.name] += 1
            parts[request.name].add((request.key, request.task))
            if request.error and request.utterance is None:
                continue  # nothing is known of it but its name
            other = recordings.setdefault(request.name, request)
            if other.path != request.path:
                raise _same_file(other.path, request.path, f"{os.path.splitext(request.name)[0]}.{form}")
        single = path.lower().endswith(f".{form}")
        if single and len(recordings) > 1:
            raise UserError(f"--output={path!r} is one file for {len(recordings):,} recordings; allowed: a folder")
        root = epath.Path(path)
        self._root = root.parent if single else root
        check_no_link(root)
        files = dict.fromkeys(recordings, root) if single else _files_in(root, recordings, form)
        self._recordings = {
            name: _Recording(
                file,
                {"audio": printable(recordings[name].file, most=None), "parts": digest(sorted(parts[name]))},
            )
            for name, file in files.items()
        }
        beside, claim = _beside(path, form, _PARTS), _beside(path, form, _RUN)
        old = _bytes_in(beside)
        foreign = bool(old) and not claim.exists()  # lines of whoever; nothing of it is read or changed
        content = old[: old.rfind(b"\n") + 1]
        said = {} if foreign else _said(content, file=beside)
        there = {name for name, one in self._recordings.items() if one.file.exists()}
        begun = foreign or bool(there) or any((self._root / file).exists() for file in said)
        _claim(claim, path, run, begun=begun)
        if content != old:
            write_file(beside, content)
        for name in there:
            file, wanted = self._recordings[name]
            was = said.get(self._below(file), wanted)  # nothing is said of what an earlier version wrote
            if was["audio"] != wanted["audio"]:
                raise UserError(f"{file} is of {was['audio']}, not of {wanted['audio']}; allowed: another --output")
            if was == wanted:
                self._left[name] = 0
        self._said = GrowingFile(beside, content=content)
        self._waiting: list[tuple[epath.Path, str]] = []  # files that are said to be there, and are not yet
        self._results: dict[str, dict[tuple[str, str], Result]] = collections.defaultdict(dict)
        self.sessions: dict[str, str] = {}

    def _below(self, file: epath.Path) -> str:
        return printable(os.path.relpath(file, self._root), most=None)

    def has(self, request: Request) -> bool:
        """As `Output.has`."""
        return not self._left[request.name]

    def write(self, result: Result) -> None:
        """As `Output.write`."""
        request = result.request
        self._results[request.name][request.key, request.task] = result  # what is asked for twice is shown once
        self._left[request.name] -= 1
        if self._left[request.name]:
            return
        results = sorted(self._results.pop(request.name).values(), key=lambda one: one.request.offset)
        if any(one.text is None for one in results):
            return  # a file would say that nothing is to be tried again
        file, said = self._recordings[request.name]
        for folder in file.parents:
            if folder == self._root:
                break
            check_no_link(folder)
        remove_file(file)
        line = json.dumps({"file": self._below(file), **said}, ensure_ascii=False)
        self._said.write(line.encode() + b"\n")
        self._waiting.append((file, subtitles_of(results, self._form)))
        self.flush()

    def flush(self) -> None:
        """As `Output.flush`; to a bucket once a minute at most."""
        if self._waiting and self._said.flush_if_cheap():
            self._write_waiting()

    def close(self) -> None:
        """As `Output.close`."""
        self._said.close()
        self._write_waiting()

    def _write_waiting(self) -> None:
        for file, content in self._waiting:
            write_file(file, content)
        self._waiting.clear()


def _bytes_in(file: epath.Path) -> bytes:
    """What a file holds; nothing where it is absent."""
    check_no_link(file)
    check_regular(file)
    return file.read_bytes() if file.exists() else b""


def _said(content: bytes, *, file: epath.Path) -> dict[str, dict[str, str]]:
    """What the last line of each file of subtitles says, of all lines that are written down of them in `file`."""
    said = {}
    for number, line in enumerate(content.splitlines(), start=1):
        where = f"{file}:{number}"
        row = check_fields(parse_json(line, where=where), {"file": str, "audio": str, "parts": str}, where=where)
        said[row["file"]] = {"audio": row["audio"], "parts": row["parts"]}
    return said


def subtitles_of(results: Sequence[Result], form: str) -> str:
    """The subtitles of a recording, of its utterances in their order; of those that are said at once, each its own."""
    from hra_jax.text import subtitles

    speeches: list[list[Any]] = []
    for result in results:
        if result.words:
            over = (speech for speech in speeches if speech[-1].end <= result.words[0].start + _SAME_SECONDS)
            speech = next(over, [])
            if not speech:
                speeches.append(speech)
            speech += result.words
    return subtitles.srt(*speeches) if form == "srt" else subtitles.vtt(*speeches)


def _files_in(root: epath.Path, recordings: Mapping[str, Request], form: str) -> dict[str, epath.Path]:
    """The file of each recording: its name with another suffix, which is added where that alone tells two apart."""
    stems = collections.Counter(os.path.splitext(name)[0] for name in recordings)
    found: dict[str, epath.Path] = {}
    taken: dict[str, str] = {}
    for name, request in recordings.items():
        stem = os.path.splitext(name)[0]
        file = f"{stem if stems[stem] == 1 else name}.{form}"
        if taken.setdefault(file, request.path) != request.path:
            raise _same_file(taken[file], request.path, file)
        found[name] = root / file
    return found


def _same_file(one: str, other: str, file: str) -> UserError:
    return UserError(f"{one} and {other} would both be {file}; allowed: a folder that holds both")


def open_output(path: str, form: str, run: Mapping[str, Any], requests: Requests) -> Output:
    """The output of a format; arguments and errors as `Lines` and `SubtitleFiles` have them."""
    return SubtitleFiles(path, form, run, requests) if form in SUBTITLES else Lines(path, form, run)


# --- What was asked for -----------------------------------------------------------------------------------------------


def digest(content: object) -> str:
    """A hash of what JSON can say."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _beside(path: str, form: str, name: str) -> epath.Path:
    """A file beside an output: in a folder of subtitles, or next to a file under its name."""
    in_folder = form in SUBTITLES and not path.lower().endswith(f".{form}")
    return epath.Path(f"{path}/{name}" if in_folder else f"{path}.{name}")


def check_apart(path: str, form: str, manifest: str) -> None:
    """Refuses an output whose own files would be the manifest that is read.

    Args:
      path: the output.
      form: its format.
      manifest: the file that says what is asked for; a folder is none.

    Raises:
      UserError: the manifest is the output, or a file that is written beside it.
    """
    names = (_RUN, _PARTS) if form in SUBTITLES else (_RUN,)
    written = (epath.Path(path), *(_beside(path, form, name) for name in names))
    if real_path(manifest) in map(real_path, written) and not epath.Path(manifest).is_dir():
        raise UserError(f"--output={path!r} would be written over the manifest {manifest}; allowed: another path")


def _claim(file: epath.Path, output: str, run: Mapping[str, Any], *, begun: bool) -> None:
    """Writes down what was asked for, or compares it with what is written.

    Args:
      file: where it is written.
      output: what the user gave, for errors.
      run: what was asked for.
      begun: whether there is something of the output.

    Raises:
      UserError: there is, and something else was asked for, or it is not known what.
    """
    check_no_link(file)
    wanted = parse_json(json_text(run), where="what is asked for")  # as it is read again
    there = file.exists()
    if begun and not there:
        raise UserError(f"--output={output!r} is there, and is not of this command; allowed: another path")
    stored = read_object(file, what="what an earlier run was asked for") if there else wanted
    if stored.keys().isdisjoint(wanted) or (not begun and stored.keys() != wanted.keys()):
        raise UserError(f"--output={output!r}: {file} is not of this command; allowed: another path")
    if begun:
        for name in sorted({*stored, *wanted}):
            if stored.get(name) != wanted.get(name):
                was, now = (json.dumps(side.get(name), ensure_ascii=False) for side in (stored, wanted))
                raise UserError(
                    f"--output={output!r} was begun with {name} = {was:.200}, not {now:.200}; allowed: the same "
                    "command, or another path"
                )
    else:
        write_file(file, json_text(wanted))
