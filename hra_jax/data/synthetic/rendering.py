"""Rendering of synthetic speech: a pool of eSpeak NG workers writes FLAC files and manifests, and never twice.

The folder then holds `train.jsonl`, `validation.jsonl` and `test.jsonl`, the audio they name, and `synthesis.json`:
what was asked for, and one hash over all samples and texts, which the same request gives again with any number of
processes. The same request returns at once where it is finished, and starts over where it was interrupted.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import tqdm

from hra_jax.console import listed
from hra_jax.data.synthetic import grammar
from hra_jax.data.synthetic.speakers import SETS, Speaker, SpeakerSet, check_speaker, custom_set
from hra_jax.errors import UserError
from hra_jax.run import children
from hra_jax.storage import checksums, folders, locks
from hra_jax.storage.files import check_no_link, make_folder, remove_file, write_file
from hra_jax.storage.json_files import COUNT, Kind, check_fields, read_object
from hra_jax.storage.remote import is_remote, local_path

_RENDERING = 1  # raise it when the same request gives other samples or texts than before
_DONE = "synthesis.json"
_STARTED = "synthesis.partial.json"
_FILES_PER_FOLDER = 1000
_SAMPLE_RATE = 8000  # Hz


@dataclasses.dataclass(frozen=True)
class _Job:
    """One utterance to render: `number` counts over the whole set, `path` is relative to the output folder."""

    number: int
    split: str
    speaker: Speaker
    text: str
    path: str
    seed: list[int]


def _plan(chosen: SpeakerSet, scale: float) -> list[_Job]:
    """Every utterance of a set, in the order of its manifests."""
    jobs: list[_Job] = []
    for split in grammar.SPLITS:
        speakers, count = chosen.make(split), chosen.utterances[split]
        if chosen.many:
            speakers = speakers[: max(1, round(scale * len(speakers)))]
        else:
            count = max(1, round(scale * count))
        for speaker in speakers:
            seed = chosen.speaker_seed(speaker, split)
            texts = grammar.sample(
                split, np.random.default_rng(seed), count=count, isolated_share=chosen.isolated_share
            )
            for index, text in enumerate(texts):
                position = len(jobs)
                folder = f"{position // _FILES_PER_FOLDER:03d}" if chosen.many else speaker.name
                path = f"audio/{folder}/{split}-{position if chosen.many else index:05d}.flac"
                jobs.append(_Job(position, split, speaker, text, path, [*seed, index]))
    return jobs


def _start_worker() -> subprocess.Popen[str]:
    # Threads of a linear algebra library would not survive the forks, and the package must be found where this process
    # found it.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return children.start(
        [sys.executable, "-m", "hra_jax.data.synthetic.voice_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which takes its workers with it
    )


def _run_worker(lines: list[str], *, failed: threading.Event, bar: tqdm.tqdm) -> list[dict]:
    """Has one process do some jobs; returns its answers, those that it has where another process has `failed`.

    Raises:
      RuntimeError: a job failed, or the process ended before its last one; `failed` is set then.
    """
    answers, stopped = [], False
    with _start_worker() as process:
        assert process.stdin is not None and process.stdout is not None  # both are pipes
        # A worker that died while starting has said why on standard error.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write("\n".join(lines))
            process.stdin.close()
        for line in process.stdout:
            answers.append(json.loads(line))
            if "error" in answers[-1]:
                failed.set()
                raise RuntimeError(f"speech synthesis failed: {answers[-1]['error']}")
            if failed.is_set() and not stopped:
                process.terminate()
                stopped = True
            bar.update()
    if len(answers) < len(lines) and not stopped:  # who is stopped is not the one to say why
        failed.set()
        raise RuntimeError(f"a speech synthesis process ended with status {process.returncode} before its last job")
    return answers


def _render_jobs(
    jobs: list[_Job], *, folder: pathlib.Path, sample_rate: int, processes: int, progress: bool
) -> list[dict]:
    """Renders all jobs; returns their answers in order of the jobs."""
    for name in sorted({os.path.dirname(job.path) for job in jobs}):
        check_no_link(folder / name)
        make_folder(folder / name)
    lines = [
        json.dumps({**dataclasses.asdict(job), "path": str(folder / job.path), "sample_rate": sample_rate})
        for job in jobs
    ]
    processes, failed = max(1, min(processes, len(jobs))), threading.Event()
    with (
        tqdm.tqdm(total=len(jobs), desc="speaking", unit="utterance", disable=not progress) as bar,
        concurrent.futures.ThreadPoolExecutor(processes) as pool,
    ):
        parts = [pool.submit(_run_worker, lines[part::processes], failed=failed, bar=bar) for part in range(processes)]
        answers = [answer for part in parts for answer in part.result()]
    return sorted(answers, key=lambda answer: answer["number"])


def _manifest_line(job: _Job, answer: dict, sample_rate: int) -> str:
    speaker = job.speaker
    row = {
        "audio_filepath": job.path,
        "duration": round(answer["samples"] / sample_rate, 6),
        "text": job.text,
        "speaker": speaker.name,
        "lang": "en",
        "voice": speaker.voice,
        "variant": speaker.variant,
    }
    return json.dumps(row) + "\n"


def _table(jobs: list[_Job], answers: list[dict], sample_rate: int) -> dict[str, dict]:
    """Utterances, seconds and words by speaker and split; sets of many speakers by split alone."""
    rows: dict[str, dict] = {}
    many = len({job.speaker.name for job in jobs}) > 50
    for job, answer in zip(jobs, answers, strict=True):
        name = job.split if many else f"{job.speaker.name} {job.split}"
        row = rows.setdefault(name, {"utterances": 0, "seconds": 0.0, "words": 0})
        row["utterances"] += 1
        row["seconds"] += answer["samples"] / sample_rate
        row["words"] += len(job.text.split())
    return {name: {**row, "seconds": round(row["seconds"], 1)} for name, row in rows.items()}


def _finished(folder: pathlib.Path, request: dict) -> bool:
    """Whether this request is already rendered there; UserError if another one is, or was begun."""
    for name in (_DONE, _STARTED):
        if (folder / name).exists():
            try:
                found = read_object(folder / name, {"request": dict})["request"]
            except UserError as error:
                raise UserError(f"{folder / name} is not from this program; give an empty folder") from error
            different = [
                f"{key} {found.get(key)!r}, not {value!r}" for key, value in request.items() if found.get(key) != value
            ]
            if different:
                raise UserError(f"{folder} holds another rendering ({'; '.join(different)}); give another folder")
    # What had begun and is not put away was killed before its checksums were written, or is being rendered.
    return (folder / _DONE).exists() and not (folder / _STARTED).exists()


def _check_ours(folder: pathlib.Path) -> None:
    """Refuses a folder that holds what no rendering has put there: the user's own recordings would be written over.

    Raises:
      UserError: it is not empty, and a rendering has neither finished nor begun there; or a link lies where it writes.
    """
    written = {_DONE, _STARTED, "audio", *(f"{split}.jsonl" for split in grammar.SPLITS)}
    for name in sorted(written):
        check_no_link(folder / name)
    # Hidden files, of file managers for example, are no data.
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if held and not (folder / _STARTED).exists():
        raise UserError(
            f"{str(folder)!r} holds {listed(held, most=3)} and was not rendered by this program; allowed: an empty "
            "folder to render synthetic speech into, or a new one (for recordings of your own: --config own)"
        )


def _chosen_set(set_name: str, speakers: tuple[Speaker, ...] | None) -> SpeakerSet:
    if speakers is not None:
        if set_name != "custom":
            raise UserError(f"own speakers make the set 'custom', not {set_name!r}")
        for speaker in speakers:
            check_speaker(speaker)
        return custom_set(tuple(speakers))
    if set_name not in SETS:
        raise UserError(f"unknown synthetic set {set_name!r}; allowed: {', '.join(SETS)}")
    return SETS[set_name]


def _request(set_name: str, chosen: SpeakerSet, *, scale: float, sample_rate: int) -> dict:
    """What a rendering is told from others by."""
    return {
        "set": set_name,
        "speakers": chosen.fingerprint(),
        "scale": float(scale),
        "sample_rate": sample_rate,
        "rendering": _RENDERING,
    }


def check_rendered(set_name: str, folder: str | os.PathLike) -> None:
    """Makes sure that a whole set is rendered in a folder, and renders nothing.

    Raises:
      UserError: it is not, or another one is.
    """
    chosen = _chosen_set(set_name, None)
    if not _finished(pathlib.Path(folder), _request(set_name, chosen, scale=1.0, sample_rate=_SAMPLE_RATE)):
        raise UserError(
            f"{str(folder)!r} does not hold the synthetic set {set_name!r}, which is not rendered here; "
            f"python -m hra_jax.data.synthesize --set {set_name} --output DIR does"
        )


def render(
    set_name: str,
    output: str | os.PathLike,
    *,
    processes: int | None = None,
    scale: float = 1.0,
    sample_rate: int = _SAMPLE_RATE,
    speakers: tuple[Speaker, ...] | None = None,
    progress: bool = True,
) -> pathlib.Path:
    """Renders a set of speakers into a folder, unless it is there already.

    Args:
      set_name: a name in `speakers.SETS`, or "custom" with `speakers`.
      output: a local folder; made if absent.
      processes: how many processes speak at a time; None for one per core. Changes nothing in the result.
      scale: multiplies the number of utterances of every split.
      sample_rate: of the files, Hz.
      speakers: own speakers, for the set "custom".
      progress: whether to show a progress bar.

    Returns:
      The folder.

    Raises:
      UserError: unknown set or voice, a folder that holds another rendering, a value that is not allowed.
      RuntimeError: eSpeak NG failed on an utterance.
    """
    chosen = _chosen_set(set_name, speakers)
    output = local_path(os.fspath(output))
    if not output or is_remote(output):
        raise UserError(f"the output {output!r} is not a local folder; render locally and copy the folder")
    if not 0 < scale <= 10 or not 4000 <= sample_rate <= 48000:
        raise UserError(f"scale {scale}, sample_rate {sample_rate}; allowed: scale up to 10, 4000 to 48000 Hz")
    folder = pathlib.Path(output)
    request = _request(set_name, chosen, scale=scale, sample_rate=sample_rate)
    if _finished(folder, request):
        return folder
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file; allowed: a folder to render into")
    if folder.exists():
        _check_ours(folder)
    # Processes of one run may render the same folder of a disk of their own: one does, the others wait.
    with locks.hold(folder, "rendering", patient=True):
        if not _finished(folder, request):
            _check_ours(folder)
            _render_into(folder, chosen, request, scale=scale, processes=processes, progress=progress)
    return folder


def _render_into(
    folder: pathlib.Path, chosen: SpeakerSet, request: dict, *, scale: float, processes: int | None, progress: bool
) -> None:
    sample_rate = request["sample_rate"]
    write_file(folder / _STARTED, json.dumps({"request": request}))
    jobs = _plan(chosen, scale)
    answers = _render_jobs(
        jobs, folder=folder, sample_rate=sample_rate, processes=processes or os.cpu_count() or 1, progress=progress
    )
    for split in grammar.SPLITS:
        rows = [
            _manifest_line(job, answer, sample_rate)
            for job, answer in zip(jobs, answers, strict=True)
            if job.split == split
        ]
        write_file(folder / f"{split}.jsonl", "".join(rows))
    content = "\n".join(
        f"{job.path}\t{job.text}\t{answer['sha256']}" for job, answer in zip(jobs, answers, strict=True)
    )
    summary = {
        "request": request,
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "espeak": answers[0]["espeak"],
        "speakers": _table(jobs, answers, sample_rate),
    }
    # Written without waiting for the disk, file by file; from here on nobody renders them again.
    folders.sync_tree(folder)
    write_file(folder / _DONE, json.dumps(summary, indent=1) + "\n")
    checksums.write_listing(folder, but=lambda path: path == _STARTED, durable=True)
    remove_file(folder / _STARTED)


def summary_table(folder: str | os.PathLike) -> str:
    """The table of a finished rendering: speaker and split, utterances, seconds, words."""
    summary = read_object(pathlib.Path(folder) / _DONE, {"speakers": dict, "hash": str, "espeak": str})
    columns: dict[str, Kind] = {"utterances": COUNT, "seconds": float, "words": COUNT}
    for name, row in summary["speakers"].items():
        check_fields(row, columns, where=f"{pathlib.Path(folder) / _DONE}: speakers.{name}")
    rows = [(name, *(row[column] for column in columns)) for name, row in summary["speakers"].items()]
    rows.append(("total", *(round(sum(column), 1) for column in list(zip(*rows, strict=True))[1:])))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'speaker':<{width}} {'utterances':>10} {'seconds':>9} {'words':>7}"]
    lines += [f"{name:<{width}} {count:>10} {seconds:>9.1f} {words:>7}" for name, count, seconds, words in rows]
    return "\n".join([*lines, f"hash {summary['hash']}", f"eSpeak NG {summary['espeak']}"])
