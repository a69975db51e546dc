"""Training runs as cells of a table: each is run once, written to a JSON file, and never run again."""

import json
import shutil
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from etils import epath
from harness import environment
from ml_collections import ConfigDict

from hra_jax import train
from hra_jax.config.files import load_config


def define_flags() -> None:
    """The flags of a benchmark that is made of cells."""
    flags.DEFINE_string("cells", None, "Folder of the cells; those that are there are not run again.", required=True)
    flags.DEFINE_string(
        "workdir", None, "Where the runs write; each is deleted when its cell is written.", required=True
    )
    flags.DEFINE_string("json", "", "Where the table is written as JSON; '' for nowhere.")
    flags.DEFINE_float("minutes", 0.0, "No cell is begun after so many minutes; 0 for no limit.")


class OutOfTime(Exception):
    """The time that the benchmark was given is over; what is done is kept."""


class Cells:
    """A folder of finished cells, and the clock of the cells that are still to run."""

    def __init__(self, folder: str, workdir: str, *, minutes: float = 0.0):
        """`minutes`: no cell is begun after so many; 0 for no limit."""
        self.folder, self.workdir = epath.Path(folder), epath.Path(workdir)
        self._end = time.monotonic() + 60 * minutes if minutes else float("inf")
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, run: Callable[[epath.Path], dict], facts: dict) -> dict:
        """The cell of that name; `run` makes it in an empty folder where it is not there yet.

        Args:
          name: of the cell.
          run: gives its numbers.
          facts: its settings, which are stored with it.

        Raises:
          OutOfTime: it is not there, and the time is over.
          RuntimeError: it is there with other settings.
        """
        path = self.folder / f"{name}.json"
        if path.exists():
            cell = json.loads(path.read_text(encoding="utf-8"))
            for key, value in facts.items():
                if cell[key] != value:
                    raise RuntimeError(
                        f"{path}: {key} is {cell[key]!r} there, but {value!r} now; delete it to run again"
                    )
            return cell
        if time.monotonic() > self._end:
            raise OutOfTime(name)
        workdir = self.workdir / name
        if workdir.exists():
            shutil.rmtree(workdir)
        start, cpu = time.monotonic(), time.process_time()
        cell = facts | run(workdir)
        cell |= {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu, **environment()}
        path.write_text(json.dumps(cell, sort_keys=True, separators=(",", ":")) + "\n", encoding="utf-8")
        shutil.rmtree(workdir, ignore_errors=True)
        jax.clear_caches()
        return cell

    def all(self) -> list[dict]:
        """Every cell that is there, by name."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("*.json"))]


def configured(name: str, **changes) -> ConfigDict:
    """A ready-made configuration with other values: keys with `__` for the dots."""
    config = load_config(name).copy_and_resolve_references().unlock()
    for key, value in changes.items():
        *groups, last = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    return config.lock()


def trained(config: ConfigDict, workdir: epath.Path) -> dict:
    """Trains to the end.

    Returns:
      {'validation': best macro WER on the selection suite, None without one; 'parameters': {...}; 'wer', 'wer_macro';
       'tasks': {task: [[key, errors, words], ...]}} of the test suite.
    """
    status = train.train(config, workdir)
    if status:
        raise RuntimeError(f"{workdir}: training ended with status {status}")
    (folder,) = (workdir / "eval").iterdir()
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    validation = [
        line["wer"]
        for line in map(_validation_of, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        if line is not None
    ]
    fields = ("trainable_parameters", "shared_parameters", "parameters_per_task", "backbone_parameters")
    return {
        "validation": min(validation, default=None),
        "parameters": {name: results[name] for name in fields},
        "wer": results["wer"],
        "wer_macro": results["wer_macro"],
        "base_wer": results["base_wer"],
        "base_wer_macro": results["base_wer_macro"],
        "step": results["step"],
        "tasks": {name: _errors_of(folder, name) for name in results["tasks"]},
    }


def _validation_of(line: str) -> dict | None:
    found = [value for name, value in json.loads(line).items() if name.endswith("/wer_macro")]
    return {"wer": found[0]} if found else None


def _errors_of(folder: epath.Path, task: str) -> list:
    from hra_jax.tasks.names import task_file_names

    path = folder / f"predictions_{task_file_names([task])[task]}.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    # Manifests that a benchmark writes name audio by absolute paths, which are those of one machine.
    return [[row["key"][max(row["key"].rfind("audio/"), 0) :], row["errors"], row["words"]] for row in rows]


def _errors_and_words(group: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{task: (errors [K, U], words [U])} of one method: a cell for each of K seeds, utterances in one order."""
    found = {}
    for task in sorted(group[0]["tasks"]):
        rows = [{key: (errors, words) for key, errors, words in cell["tasks"][task]} for cell in group]
        keys = sorted(rows[0])
        errors = np.array([[row[key][0] for key in keys] for row in rows])
        found[task] = errors, np.array([rows[0][key][1] for key in keys])
    return found


def clustered_rates(groups: list[list[dict]], *, samples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Pooled error rates of several methods on resampled speakers, utterances and seeds.

    A resample draws as many speakers as there are, with replacement; for each of them as many of its utterances; and
    for each method as many of its seeds. Methods share the speakers and utterances of a resample, not the seeds, which
    have nothing to do with each other. So an interval says what other speakers and other seeds would do to a number.

    Args:
      groups: for each of G methods its cells, one for each seed; all of them scored the same utterances.
      samples: S, the number of resamples.
      seed: of the resamples.

    Returns:
      [S, G] rates, fractions.

    Raises:
      ValueError: the methods did not score the same tasks.
    """
    sides = [_errors_and_words(group) for group in groups]
    tasks = list(sides[0])
    if any(list(side) != tasks for side in sides):
        raise ValueError(f"methods scored other tasks: {[list(side) for side in sides]}")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(tasks), size=(samples, len(tasks)))
    words = np.zeros(samples)
    errors = [np.zeros((samples, len(group))) for group in groups]
    for number, task in enumerate(tasks):
        sample, _ = np.nonzero(drawn == number)
        utterances = len(sides[0][task][1])
        counts = rng.multinomial(utterances, np.full(utterances, 1 / utterances), size=len(sample))
        np.add.at(words, sample, counts @ sides[0][task][1])
        for total, side in zip(errors, sides, strict=True):
            np.add.at(total, sample, counts @ side[task][0].T)
    rates = []
    for total in errors:
        seeds = total.shape[1]
        weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=samples) / seeds
        rates.append(np.sum(total * weights, axis=1) / words)
    return np.stack(rates, axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def rate_of(group: list[dict]) -> float:
    """The pooled error rate of a method's cells, all seeds together."""
    sides = _errors_and_words(group).values()
    return float(sum(errors.sum() for errors, _ in sides) / (len(group) * sum(words.sum() for _, words in sides)))


def difference_of(reference: list[dict], other: list[dict]) -> dict[str, float | str]:
    """The difference of the pooled error rates, other minus reference, with its interval and what it says."""
    rates = clustered_rates([reference, other])
    low, high = interval(rates[:, 1] - rates[:, 0])
    verdict = "worse" if low > 0 else "better" if high < 0 else "-"
    return {"difference": rate_of(other) - rate_of(reference), "low": low, "high": high, "verdict": verdict}
