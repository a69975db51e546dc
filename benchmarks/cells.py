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
from hra_jax.evaluation.paired import paired_bootstrap


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
            cell = json.loads(path.read_text())
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
        path.write_text(json.dumps(cell, sort_keys=True, separators=(",", ":")) + "\n")
        shutil.rmtree(workdir, ignore_errors=True)
        jax.clear_caches()
        return cell

    def all(self) -> list[dict]:
        """Every cell that is there, by name."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


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
    results = json.loads((folder / "results.json").read_text())
    validation = [
        line["wer"]
        for line in map(_validation_of, (workdir / "metrics.jsonl").read_text().splitlines())
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
    from hra_jax.adapters.adapter_folder import task_file_names

    path = folder / f"predictions_{task_file_names([task])[task]}.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
    # Manifests that a benchmark writes name audio by absolute paths, which are those of one machine.
    return [[row["key"][max(row["key"].rfind("audio/"), 0) :], row["errors"], row["words"]] for row in rows]


def pooled(cells: list[dict]) -> dict[str, dict[str, tuple[int, int]]]:
    """{task: {utterance: (errors, words)}} summed over cells of the same tasks and utterances (several seeds)."""
    sums: dict[str, dict[str, np.ndarray]] = {}
    for cell in cells:
        for task, rows in cell["tasks"].items():
            for key, errors, words in rows:
                place = sums.setdefault(task, {})
                place[key] = place.get(key, np.zeros(2, int)) + (errors, words)
    return {task: {key: tuple(map(int, value)) for key, value in rows.items()} for task, rows in sums.items()}


def difference_of(reference: list[dict], other: list[dict]) -> dict:
    """The paired difference of the pooled error rates, other minus reference, with its interval and what it says."""
    sides = pooled(reference), pooled(other)
    counts = {
        task: np.array([(errors, sides[1][task][key][0], words) for key, (errors, words) in rows.items()])
        for task, rows in sides[0].items()
        if task in sides[1]
    }
    found = paired_bootstrap(counts).pooled
    verdict = ("worse" if found.low > 0 else "better") if found.significant else "-"
    return {"difference": found.difference, "low": found.low, "high": found.high, "verdict": verdict}
