"""Recordings to text, through the adapter of a task or of many.

python -m hra_jax.transcribe --adapter runs/quickstart/adapter --task whisper a.wav b.flac recordings
python -m hra_jax.transcribe --adapter runs/quickstart/adapter --manifest M.jsonl --output texts.jsonl
"""

import contextlib
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from hra_jax import cli
from hra_jax.adapters import adapter_folder, initial, task_records
from hra_jax.api import load_adapter, load_backbone
from hra_jax.console import listed, say, stdout, tell
from hra_jax.data import pauses, sources
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.run import signals
from hra_jax.run.jax_setup import setup_jax
from hra_jax.storage import locks
from hra_jax.tasks import gate
from hra_jax.tasks.descriptions import is_untrained
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK, unknown_task
from hra_jax.transcription import outputs, requests
from hra_jax.transcription.outputs import Output
from hra_jax.transcription.recognising import Options, Recogniser, results
from hra_jax.transcription.requests import Request, Requests
from hra_jax.transcription.summary import Summary

FLAGS = flags.FLAGS


def choose_task(adapter: str | None, task: str | None) -> tuple[str, str]:
    """The task to recognise with, and a line that tells what the user may not know; '' for none.

    Args:
      adapter: folder of an exported adapter; None for the backbone alone.
      task: what was asked for; None for nothing.

    Raises:
      UserError: nothing was asked for, and the adapter has other than one task.
    """
    if adapter is None:
        return task or BASE_TASK, ""
    entries = {entry["name"]: entry for entry in adapter_folder.read_tasks(adapter)}
    if task is None:
        if len(entries) != 1:
            others = f"{listed(entries, show=str)}, " if entries else ""
            raise UserError(
                f"--task is missing, and {adapter} has {len(entries)} tasks; allowed: {others}{MEAN_TASK} (the mean of "
                f"all) or {BASE_TASK} (no adapter)"
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
    recogniser = load(adapter, backbone, tasks=[task], options=Options(chunk_seconds))
    asked = [Request(file, file, task, file) for file in files]
    for result in results(iter(asked), recogniser):
        yield result.request.path, result.text, result.error or None


def load(adapter: str | None, backbone: str, *, tasks: Sequence[str], options: Options) -> Recogniser:
    """What recognises.

    Args:
      adapter, backbone: as for `transcribe`.
      tasks: some that will be asked for.
      options: how.

    Raises:
      UserError: an unknown task, an adapter of another backbone, or one of both that cannot be loaded.
    """
    base = load_backbone(backbone)
    for task in tasks if adapter is None else ():
        if task != BASE_TASK:
            raise _needs_adapter(task)
    if adapter is None:
        return Recogniser(base, None, options)
    model = load_adapter(adapter, base)
    for task in tasks:
        (model.mean() if task == MEAN_TASK else model).vocabulary(task)  # an unknown task fails now
    return Recogniser(base, model, options)


def _needs_adapter(task: str) -> UserError:
    return UserError(f"task = {task!r} needs --adapter; without one only {BASE_TASK!r} is there")


# --- The command ------------------------------------------------------------------------------------------------------


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("adapter", None, "Folder of an exported adapter; without it the backbone alone is used.")
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")
    flags.DEFINE_string(
        "task",
        None,
        "Task of the adapter, __mean__ or __base__, of all that names none; may be left out where the adapter has one.",
    )
    flags.DEFINE_string("manifest", None, "A manifest, a folder of shards, or seqio:NAME/SPLIT.")
    flags.DEFINE_string("task_tag", requests.TASK_TAG, "With --manifest: the field whose value is the task of a line.")
    flags.DEFINE_string("data_dir", "", "With --manifest: what {dir} in it stands for; where corpora lie.")
    flags.DEFINE_list("modules", [], "With --manifest: modules that register seqio Tasks, as data.modules.")
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
    setup_jax()
    asked, task = _asked(argv[1:])
    with contextlib.ExitStack() as stack:
        if FLAGS.output is None:
            note = "stopped by SIGTERM; with --output the same command would go on"
            stack.enter_context(signals.sigterm_says(note))
            output: Output = outputs.Printed(form)
        else:
            stack.enter_context(locks.hold_beside(FLAGS.output, "transcribing"))
            output = outputs.open_output(FLAGS.output, form, _run(task, form), asked)
        stack.callback(output.close)
        return _recognise(asked, task, output, words=form not in (outputs.TEXT, outputs.SHORT))


def _recognise(asked: Requests, task: str | None, output: Output, *, words: bool) -> int:
    """Writes what is not there yet to the output; the exit status."""
    there = [0]

    def missing() -> Iterator[Request]:
        for request in asked.make():
            if output.has(request):
                there[0] += 1
            else:
                yield request

    left = missing()
    first = next(left, None)
    printed = FLAGS.output is None
    with Summary(asked.count, done=lambda: there[0], shown=not (printed and sys.stdout.isatty())) as summary:
        if first is not None:
            options = Options(FLAGS.chunk_seconds, words)
            recogniser = load(FLAGS.adapter, FLAGS.backbone, tasks=[task] if task else [], options=options)
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
            return form
    cli.check_output("output", output)
    return form


def _asked(words: Sequence[str]) -> tuple[Requests, str | None]:
    """The requests of the command line, and the task of those that name none; None where each names one.

    Raises:
      UserError: something is missing, is not there, or names no task that there is.
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
    parts = [requests.of_paths(words, task=task or "")] if words else []
    if FLAGS.manifest is not None:
        names = [] if FLAGS.adapter is None else [entry["name"] for entry in adapter_folder.read_tasks(FLAGS.adapter)]
        known = [*names, BASE_TASK, *([MEAN_TASK] if names else [])]
        source = sources.located(FLAGS.manifest, data_dir=FLAGS.data_dir, key="--manifest", modules=FLAGS.modules)
        parts.append(
            requests.of_manifest(
                source,
                task=task,
                known=known,
                unknown=lambda name: unknown_task(name, known) if names else _needs_adapter(name),
                missing=refusal,
                task_tag=FLAGS.task_tag,
            )
        )
    return functools.reduce(Requests.then, parts), task


def _run(task: str | None, form: str) -> dict[str, Any]:
    """What an output depends on, as JSON has it: nothing else may go on with it."""
    adapter = None
    if FLAGS.adapter is not None:
        entries = adapter_folder.read_tasks(FLAGS.adapter)
        aside = sorted(task_records.set_aside(entries))
        content = json.dumps([initial.content_hash(FLAGS.adapter), [entry["name"] for entry in entries], aside])
        adapter = hashlib.sha256(content.encode()).hexdigest()
    return {
        "format": form,
        "adapter": adapter,
        "backbone": backbone_folder.load(FLAGS.backbone).fingerprint,
        "task": task,
        "task_tag": FLAGS.task_tag if FLAGS.manifest is not None else None,
        "chunk_seconds": FLAGS.chunk_seconds,
    }


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
