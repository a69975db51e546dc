"""Audio files to text, through the adapter of a task.

python -m hra_jax.transcribe --adapter runs/quickstart/adapter --task whisper a.wav b.flac
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import flags

from hra_jax import cli
from hra_jax.adapters import adapter_folder, task_records
from hra_jax.api import load_adapter, load_backbone
from hra_jax.console import error_line, listed, printable, tell
from hra_jax.data import audio, pauses
from hra_jax.errors import UserError
from hra_jax.run.jax_setup import setup_jax
from hra_jax.tasks import gate
from hra_jax.tasks.descriptions import is_untrained
from hra_jax.tasks.names import BASE_TASK, MEAN_TASK

FLAGS = flags.FLAGS
_TOGETHER = 16  # files decoded and recognised at a time


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
    base = load_backbone(backbone)
    if adapter is None and task != BASE_TASK:
        raise UserError(f"task = {task!r} needs --adapter; without one only {BASE_TASK!r} is there")
    model = None if adapter is None else load_adapter(adapter, base)
    if model is not None:
        model = model.mean() if task == MEAN_TASK else model
        model.vocabulary(task)  # an unknown task fails now

    def recognised(waveforms: list[np.ndarray]) -> list[str]:
        if model is None:
            return base.transcribe(waveforms, sample_rate=base.sample_rate, chunk_seconds=chunk_seconds)
        tasks = [task] * len(waveforms)
        return model.transcribe(waveforms, sample_rate=base.sample_rate, tasks=tasks, chunk_seconds=chunk_seconds)

    for start in range(0, len(files), _TOGETHER):
        part = files[start : start + _TOGETHER]
        waveforms: list[np.ndarray] = []
        errors: dict[str, str] = {}
        for file in part:
            try:
                waveforms.append(audio.decode_file(file, base.sample_rate))
            except audio.AudioError as error:
                errors[file] = str(error)
        texts = iter(_each(recognised, waveforms, all_may_fail=start > 0))
        for file in part:
            text, why = (None, errors[file]) if file in errors else next(texts)
            yield file, text, why


def _each(
    recognised: Callable[[list[np.ndarray]], list[str]], waveforms: list[np.ndarray], *, all_may_fail: bool
) -> list[tuple[str | None, str | None]]:
    """(text, error) of each waveform; those that overflow cost no other its text, unless it is all of them."""
    try:
        return [(text, None) for text in recognised(waveforms)]
    except UserError:
        alone: list[tuple[str | None, str | None]] = []
        for waveform in waveforms:
            try:
                alone.append((recognised([waveform])[0], None))
            except UserError as error:
                alone.append((None, str(error)))
        if all_may_fail or any(error is None for _, error in alone):
            return alone
        raise


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("adapter", None, "Folder of an exported adapter; without it the backbone alone is used.")
    flags.DEFINE_string("backbone", "builtin:tiny", "Folder of the backbone, or builtin:NAME.")
    flags.DEFINE_string(
        "task", None, "Task of the adapter, __mean__ or __base__; may be left out where the adapter has one task."
    )
    flags.DEFINE_float(
        "chunk_seconds",
        None,
        "Longer audio is cut at pauses into chunks of at most this; default: as long as what was trained on.",
    )
    flags.DEFINE_bool("json", False, "JSON Lines on stdout: audio_filepath, text, task; or error.")


def main(argv: Sequence[str]) -> int:
    """Prints the text of each file; returns 2 if any file could not be read, after all others are done."""
    files = argv[1:]
    if not files:
        raise UserError("no audio file given; usage: --adapter DIR --task NAME a.wav b.flac ...")
    if FLAGS.chunk_seconds is not None:
        pauses.check_seconds(FLAGS.chunk_seconds)
    setup_jax()
    task, notice = choose_task(FLAGS.adapter, FLAGS.task)
    if notice:
        tell(notice, to=sys.stderr)
    failed = 0
    recognised = transcribe(
        files, adapter=FLAGS.adapter, backbone=FLAGS.backbone, task=task, chunk_seconds=FLAGS.chunk_seconds
    )
    for file, text, error in recognised:
        failed += error is not None
        if FLAGS.json:
            found = {"text": text, "task": task} if error is None else {"error": error}
            tell(json.dumps({"audio_filepath": file, **found}, ensure_ascii=False))
        elif error is None:
            tell("\t".join(printable(part, most=None) for part in (file, text)))
        if error is not None:
            error_line(f"{file}: {error}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
