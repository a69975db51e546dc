"""Recordings to text, through the adapter of a task or of many.

python -m hra_jax.transcribe --adapter runs/quickstart/adapter --task whisper a.wav b.flac recordings
python -m hra_jax.transcribe --adapter runs/quickstart/adapter --manifest M.jsonl --output texts.jsonl
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.adapters import adapter_folder, initial, task_records
from hra_jax.console import listed, say, stdout, tell
from hra_jax.data import pauses, sources
from hra_jax.decoding import flags as decode_flags
from hra_jax.decoding.settings import DecodeSettings, decode_settings
from hra_jax.errors import UserError
from hra_jax.run import signals
from hra_jax.run.jax_setup import setup_jax
from hra_jax.storage import checksums, locks
from hra_jax.tasks import gate
from hra_jax.tasks.descriptions import is_untrained
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK, MEAN_TASK, unknown_task
from hra_jax.transcription import outputs, requests
from hra_jax.transcription.outputs import Output
from hra_jax.transcription.recognising import Options, Recogniser, needs_adapter, results
from hra_jax.transcription.requests import Request, Requests
from hra_jax.transcription.summary import Summary

FLAGS = flags.FLAGS


def choose_task(adapter: str | None, task: str | None) -> tuple[str, str]:
    """The task to recognise with, and a line that tells what the user may not know; '' for none.

    Args:
      adapter: folder of an exported adapter; None for the backbone alone.
      task: what was asked for; None for nothing.

    Raises:
      UserError: nothing was asked for, and the adapter has other than one task; or one that it does not have.
    """
    if adapter is None:
        return task or BASE_TASK, ""
    entries = {entry["name"]: entry for entry in adapter_folder.read_tasks(adapter)}
    if task is not None and task not in (known := _known_tasks(entries)):
        raise unknown_task(task, known)
    if task is None:
        if len(entries) != 1:
            others = f"{listed(entries, show=str)}, " if entries else ""
            raise UserError(
                f"--task is missing, and {adapter} has {len(entries)} tasks; allowed: {others}{AUTO_TASK} (whichever "
                f"sounds most like a recording), {MEAN_TASK} (the mean of all) or {BASE_TASK} (no adapter)"
            )
        (task,) = entries
        notice = f"task {task!r}, the only one of {adapter}"
    else:
        notice = ""
    if task in task_records.set_aside(entries.values()):
        aside = f"task {task!r} is set aside, and recognised by the backbone alone: {gate.reason(entries[task])}"
        return BASE_TASK, f"{notice}; {aside}" if notice else aside
    if task in entries and is_untrained(entries[task]):
        never = f"task {task!r} had no training step"
        notice = f"{notice}; {never}" if notice else never
    return task, notice


def _known_tasks(names: Collection[str]) -> list[str]:
    """What may be asked for of an adapter with these tasks."""
    return [*names, BASE_TASK, *([AUTO_TASK, MEAN_TASK] if names else [])]


def transcribe(
    files: Sequence[str], *, adapter: str | None, backbone: str, task: str, chunk_seconds: float | None = None
) -> Iterator[tuple[str, str | None, str | None]]:
    """Yields (file, text, error) for each audio file; of text and error one is None.

    Args:
      files: paths of audio files, any rate and number of channels.
      adapter: folder of an exported adapter; None for the backbone alone.
      backbone: folder of the backbone, or `builtin:NAME`.
      task: a task of the adapter, `__mean__` for the mean of all, or `__base__` for none.
      chunk_seconds: the longest that is recognised at once; None for as long as what was trained on.

    Raises:
      UserError: an unknown task, or an adapter of another backbone, before any file is read; or an adapter that gives
        no numbers for any of the first files.
    """
    recogniser = Recogniser(adapter, backbone, [task], Options(chunk_seconds=chunk_seconds))
    recogniser.load()
    asked = [Request(file, file, task, file) for file in files]
    for result in results(iter(asked), recogniser):
        yield result.request.path, result.text, result.error or None


# --- The command ------------------------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("adapter", None, "Folder of an exported adapter; without it the backbone alone is used.")
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")
    flags.DEFINE_string(
        "task",
        None,
        "Task of the adapter, __auto__, __mean__ or __base__, of what names none; may be left out where the adapter "
        "has one task.",
    )
    flags.DEFINE_string(
        "session",
        "",
        "With __auto__: the field of a manifest in which recordings of one voice are alike, or __all__ for one voice.",
    )
    flags.DEFINE_string("manifest", None, "A manifest, a folder of shards, or seqio:NAME/SPLIT.")
    flags.DEFINE_string("task_tag", requests.TASK_TAG, "With --manifest: the field whose value is the task of a line.")
    flags.DEFINE_string("data_dir", "", "With --manifest: what {dir} in it stands for; where corpora lie.")
    flags.DEFINE_list("modules", [], "With --manifest: modules that register seqio Tasks, as data.modules.")
    decode_flags.define_flags(FLAGS)
    flags.DEFINE_float(
        "chunk_seconds",
        None,
        "Longer audio is cut at pauses into chunks of at most this; default: as long as what was trained on.",
    )
    flags.DEFINE_string(
        "output", None, "A file, or of subtitles a folder. The same command goes on where it was stopped."
    )
    flags.DEFINE_enum("format", None, outputs.FORMATS, "Of the output; default: what its name ends in, or text.")
    flags.DEFINE_bool("json", False, "Short JSON Lines on stdout: audio_filepath, text, task; or error.")


def main(argv: Sequence[str]) -> int:
    """Recognises what is asked for; returns 2 if any of it could not be, after all else is done."""
    form = _format(FLAGS.output, FLAGS.format, short=FLAGS.json)
    if not argv[1:] and FLAGS.manifest is None:
        raise UserError("no audio file given; usage: --adapter DIR --task NAME a.wav b.flac ..., or --manifest M.jsonl")
    if FLAGS.chunk_seconds is not None:
        pauses.check_seconds(FLAGS.chunk_seconds)
    for name in ("task_tag", "data_dir", "modules"):
        if FLAGS.manifest is None and FLAGS[name].present:
            raise UserError(f"--{name} needs --manifest: files alone have no fields and no {{dir}}")
    decode = _decode(form)
    setup_jax()
    asked, task = _asked(argv[1:], form)
    if FLAGS.session and AUTO_TASK not in asked.tasks:
        raise UserError(
            f"--session={FLAGS.session!r} would do nothing: no recording is of {AUTO_TASK}; allowed: beside "
            f"--task={AUTO_TASK}, or lines of that task"
        )
    options = Options(decode, FLAGS.chunk_seconds, words=form not in (outputs.TEXT, outputs.SHORT))
    recogniser = Recogniser(FLAGS.adapter, FLAGS.backbone, asked.tasks, options)
    with contextlib.ExitStack() as stack:
        if FLAGS.output is None:
            note = "stopped by SIGTERM; with --output the same command would go on"
            stack.enter_context(signals.sigterm_says(note))
            output: Output = outputs.Printed(form)
        else:
            stack.enter_context(locks.hold_beside(FLAGS.output, "transcribing"))
            output = outputs.open_output(FLAGS.output, form, _run(recogniser, decode, task, form), asked)
        stack.callback(output.close)
        return _recognise(asked, recogniser, output)


def _recognise(asked: Requests, recogniser: Recogniser, output: Output) -> int:
    """Writes what is not there yet to the output; the exit status."""
    there = [0]

    def missing() -> Iterator[Request]:
        for request in asked.make():
            if output.has(request):
                there[0] += 1
            else:
                yield recogniser.checked(request)

    left = missing()
    first = next(left, None)
    printed = FLAGS.output is None
    with Summary(asked.count, done=lambda: there[0], shown=not (printed and sys.stdout.isatty())) as summary:
        if first is not None:
            recogniser.load()
            recogniser.sessions.update(output.sessions)
            for result in results(itertools.chain([first], left), recogniser):
                output.write(result)
                output.flush()
                summary.add(result)
    lines, tasks = summary.lines()
    if not printed:
        console = stdout()
        if tasks is not None:
            found = tasks
            console.print(found)
        for line in lines:
            say(console, line)
    elif sys.stderr.isatty():
        tell(*lines, to=sys.stderr)
    return cli.USER_ERROR if summary.failed else 0


def _decode(form: str) -> DecodeSettings:
    """How log-probabilities become text; UserError where a flag would do nothing."""
    decode = decode_settings(decode_flags.asked(FLAGS))
    decode.check_used(phrases=FLAGS.manifest is not None)
    if decode.n_best > 1 and form != outputs.JSON_LINES:
        given = "--json" if form == outputs.SHORT else form
        raise UserError(
            f"decode.n_best = {decode.n_best}: {given} has no place for alternatives; allowed: 1, or --format=jsonl"
        )
    return decode


def _format(output: str | None, form: str | None, *, short: bool) -> str:
    """The format that is meant; UserError where the flags do not fit each other."""
    if short:
        if output is not None or form is not None:
            raise UserError("--json is short lines on stdout; allowed beside it: neither --output nor --format")
        return outputs.SHORT
    ending = (output or "").rpartition(".")[2].lower()
    form = form or (ending if ending in outputs.FORMATS else outputs.TEXT)
    if form in outputs.SUBTITLES:
        if output is None:
            raise UserError(f"--format={form} needs --output: a folder, in which each recording has a file")
        if not output.lower().endswith(f".{form}"):
            if epath.Path(output).is_file():
                raise UserError(
                    f"--output={output!r} is a file; allowed: a folder, or for one recording a .{form} file"
                )
            return form
    cli.check_output("output", output)
    return form


def _asked(words: Sequence[str], form: str) -> tuple[Requests, str | None]:
    """The requests of the command line, and the task of those that name none; None where each names one.

    Raises:
      UserError: something is missing, is not there, or names no task that there is; the output, in its format, would
        be written over the manifest.
    """
    refusal: UserError | None = None
    task: str | None = None
    try:
        task, notice = choose_task(FLAGS.adapter, FLAGS.task)
        if notice:
            tell(notice, to=sys.stderr)
    except UserError as error:
        if words or FLAGS.task is not None or FLAGS.manifest is None:
            raise
        refusal = error
    if words and FLAGS.session not in ("", requests.ALL):
        raise UserError(f"--session={FLAGS.session!r}: files have no fields; allowed: {requests.ALL}, or a manifest")
    parts = [requests.of_paths(words, task=task or "", session=FLAGS.session)] if words else []
    if FLAGS.manifest is not None:
        names = [] if FLAGS.adapter is None else [entry["name"] for entry in adapter_folder.read_tasks(FLAGS.adapter)]
        known = _known_tasks(names)
        source = sources.located(FLAGS.manifest, data_dir=FLAGS.data_dir, key="--manifest", modules=FLAGS.modules)
        if FLAGS.output is not None:
            outputs.check_apart(FLAGS.output, form, source)
        parts.append(
            requests.of_manifest(
                source,
                task=task,
                known=known,
                unknown=lambda name: unknown_task(name, known) if names else needs_adapter(name),
                missing=refusal,
                task_tag=FLAGS.task_tag,
                session_tag=FLAGS.session,
            )
        )
    return functools.reduce(Requests.then, parts), task


def _run(recogniser: Recogniser, decode: DecodeSettings, task: str | None, form: str) -> dict[str, Any]:
    """What an output depends on, as JSON has it: nothing else may go on with it."""
    phrases = recogniser.phrases()
    return {
        "format": form,
        "adapter": None if FLAGS.adapter is None else _adapter_digest(FLAGS.adapter),
        "backbone": recogniser.fingerprint,
        "task": task,
        "task_tag": FLAGS.task_tag if FLAGS.manifest is not None else None,
        "session": FLAGS.session,
        "decode": recogniser.facts(),
        "with_phrases": recogniser.facts(phrases=True),
        "phrases": outputs.digest(phrases) if phrases else None,
        "n_best": decode.n_best,
        "chunk_seconds": FLAGS.chunk_seconds,
    }


def _adapter_digest(folder: str) -> str:
    """A hash of all in an adapter that recognition depends on.

    That is its weights; its tasks, whose entries say which are set aside, and what their confidences are worth; and its
    records, by which `__auto__` chooses.
    """
    records = epath.Path(folder) / task_records.RECORDS_FILE
    held = checksums.sha256(records) if records.exists() else None
    return outputs.digest([initial.content_hash(folder), adapter_folder.read_tasks(folder), held])


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
