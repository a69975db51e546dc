"""The folder of an exported recogniser, which a server reads with jax, flatbuffers and numpy alone.

serving.json              what the program is: its inputs in their order, sample rate, labels, fingerprints, versions
recogniser.stablehlo      the program, as jax.export serialises it
backbone/                 the weights of the encoder, safetensors
shared.safetensors        the weights that all tasks share
tasks/<quoted>.safetensors   what one task owns, and whose it is: a new task is one more of these files
serve.py                  serving/standalone.py, which reads and runs all this
files.json                sizes and checksums, for hra_jax.verify
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from hra_jax import __version__
from hra_jax.adapters import task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.adapters.methods import from_folder
from hra_jax.data import pauses
from hra_jax.errors import UserError
from hra_jax.models import dtypes
from hra_jax.models.backbone_folder import BackboneFiles
from hra_jax.serving import program
from hra_jax.storage import checksums, folders, safetensors
from hra_jax.storage.files import check_no_link, is_remote, make_folder, write_file
from hra_jax.storage.json_files import json_text, read_object
from hra_jax.storage.safetensors_writer import TensorWriter
from hra_jax.storage.trees import flatten
from hra_jax.tasks.names import BASE_TASK, check_tasks, quote_task
from hra_jax.text.task_vocabularies import OwnVocabularies, stored_vocabularies
from hra_jax.text.vocabularies import Vocabulary, vocabulary_of_outputs

FORMAT_VERSION = 1
FACTS_FILE = "serving.json"
PROGRAM_FILE = "recogniser.stablehlo"
SHARED_FILE = "shared.safetensors"
SCRIPT_FILE = "serve.py"
BACKBONE_FOLDER, TASK_FOLDER = "backbone", "tasks"
METADATA = "hra_jax"  # of a row's file: JSON
_STANDALONE = Path(__file__).with_name("standalone.py")


class Written(NamedTuple):
    """What was written: bytes by part, the tasks, and the seconds that the program took."""

    sizes: dict[str, int]
    tasks: tuple[str, ...]
    seconds: float


class Source:
    """An adapter on its backbone, as it is exported."""

    def __init__(self, exported: ExportedAdapter, files: BackboneFiles, *, dtype: str, where: str):
        """Takes an adapter and its backbone.

        Args:
          exported: the adapter.
          files: the backbone, checked to be that of the adapter.
          dtype: of the weights of the encoder and of its activations, 'float32' or 'bfloat16'.
          where: the adapter's folder, for errors.

        Raises:
          UserError: another dtype, a vocabulary that cannot be read, or an adapter of which nothing belongs to a task.
        """
        if dtype not in dtypes.STORAGE_DTYPES:
            raise UserError(f"dtype = {dtype!r}: allowed: {', '.join(dtypes.STORAGE_DTYPES)}")
        self.exported, self.files, self.dtype = exported, files, np.dtype(dtypes.compute_dtype(dtype))
        self.adapter = from_folder(exported.config)
        vocabulary = vocabulary_of_outputs(files.vocabulary, files.encoder.vocab_size, where=str(files.folder))
        self.own: OwnVocabularies | None = None
        if self.adapter.own_vocabulary:
            found, common = stored_vocabularies(exported.config, exported.tasks_json, where=where)
            self.own = OwnVocabularies(vocabulary, found, self.adapter.output_size, common)
        self._vocabulary = vocabulary
        self.shared = {path: np.asarray(leaf, np.float32) for path, leaf in _flat(exported.shared).items()}
        if self.own is not None:
            self.shared[program.SYMBOLS] = self.own.symbols(BASE_TASK)
        self.row = {
            path: jax.ShapeDtypeStruct(tuple(entry["shape"]), np.float32)
            for path, entry in exported.config["tensors"]["task"].items()
        }
        if self.own is not None:
            self.row[program.SYMBOLS] = jax.ShapeDtypeStruct((self.own.size,), np.int32)
        if not self.row:
            raise UserError(
                f"{where}: its tasks own nothing, so there is no row to serve them by; allowed: other methods"
            )

    @property
    def fingerprint(self) -> str:
        """Names the method and the weights that all tasks share: a row belongs to them, and to the backbone."""
        method = json_text(self.exported.config["method"]).encode()
        return hashlib.sha256(method + safetensors.to_bytes(self.shared)).hexdigest()

    def vocabulary(self, task: str) -> Vocabulary:
        """The vocabulary of a task in the order of the program's outputs."""
        return self._vocabulary if self.own is None else self.own.in_batch(task)

    def set_aside(self, task: str) -> bool:
        """Whether a task is recognised by the backbone alone."""
        return task in task_records.set_aside(self.exported.tasks_json)

    def row_bytes(self, task: str) -> bytes:
        """The file of a task; of one that is set aside zeros, and the word that no adapter is to be used."""
        aside = self.set_aside(task)
        found = {path: np.asarray(leaf, np.float32) for path, leaf in _flat(self.exported.tasks[task]).items()}
        about: dict[str, Any] = {
            "task": task,
            "backbone": self.files.fingerprint,
            "adapter": self.fingerprint,
            "set_aside": aside,
        }
        if aside:
            found = {path: np.zeros_like(leaf) for path, leaf in found.items()}
        if self.own is not None:
            named = BASE_TASK if aside else task
            found[program.SYMBOLS] = self.own.symbols(named)
            about["labels"] = program.labels(self.vocabulary(named))
        return safetensors.to_bytes(found, {METADATA: json_text(about)})

    def facts(self, made: Any) -> dict[str, Any]:
        """The content of serving.json, of the program `made`."""
        features, trained = self.files.features, float(self.exported.config["trained_seconds"])
        vocabulary = self.vocabulary(BASE_TASK)
        return {
            "format_version": FORMAT_VERSION,
            "hra_jax": __version__,
            "jax": jax.__version__,
            "jax_holds": (
                "by jax.export's promise: every jax that was released up to 6 months after the one named here, or up "
                "to 3 weeks before it"
            ),
            "calling_convention_version": made.calling_convention_version,
            "platforms": list(made.platforms),
            "dtype": self.dtype.name,
            "backbone": {"name": self.files.info["name"], "fingerprint": self.files.fingerprint},
            "adapter": {"method": self.exported.config["method"]["name"], "fingerprint": self.fingerprint},
            "sample_rate": features.sample_rate,
            "samples_per_frame": features.stride * self.files.encoder.subsampling,
            "chunk_seconds": trained or self.files.trained_seconds or pauses.DEFAULT_SECONDS,
            "inputs": program.described(made),
            "outputs": [
                {"name": "log_probs", "dtype": "float32", "shape": ["b", "T", "V"]},
                {"name": "frames", "dtype": "int32", "shape": ["b"]},
            ],
            "row": {
                name: {"dtype": np.dtype(leaf.dtype).name, "shape": list(leaf.shape)}
                for name, leaf in sorted(self.row.items())
            },
            "blank": vocabulary.blank_id,
            "labels": program.labels(vocabulary),
        }


def _flat(tree: Any) -> dict[str, Any]:
    return flatten(tree, separator=".")


def task_file(task: str) -> str:
    """The path of a task's row in the folder."""
    return f"{TASK_FOLDER}/{quote_task(task)}.safetensors"


def check_place(output: epath.PathLike) -> None:
    """Refuses a folder that an export would replace and that is none.

    Raises:
      UserError: a bucket, a file, a link, or a folder with anything else in it.
    """
    if is_remote(output):
        raise UserError(f"--output={str(output)!r} is in a bucket; allowed: a folder here, to be copied there")
    check_no_link(output)
    output = epath.Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={str(output)!r} is there and is no folder; allowed: a folder, or nothing")
    if output.exists() and not (output / FACTS_FILE).exists() and any(output.iterdir()):
        raise UserError(f"--output={str(output)!r} holds something else; allowed: a new or empty folder, or an export")


def write(source: Source, output: epath.PathLike) -> Written:
    """Writes the folder, in place of an export that is there; the caller holds its lock.

    Raises:
      UserError: as `check_place`, or weights beyond the range of the dtype.
    """
    check_place(output)
    start = time.perf_counter()
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, source.dtype) for name, leaf in _flat(source.files.abstract).items()
    }
    shared = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in source.shared.items()}
    made = program.make(
        source.files.features,
        source.files.encoder,
        source.adapter,
        backbone=abstract,
        shared=shared,
        row=source.row,
    )
    content = {PROGRAM_FILE: bytes(made.serialize()), SHARED_FILE: safetensors.to_bytes(source.shared)}
    seconds = time.perf_counter() - start
    tasks = tuple(source.exported.tasks)
    content |= {SCRIPT_FILE: _STANDALONE.read_bytes()}
    content |= {task_file(task): source.row_bytes(task) for task in tasks}
    facts = source.facts(made)

    def fill(fresh: epath.Path) -> None:
        make_folder(fresh / TASK_FOLDER)
        for name, data in content.items():
            write_file(fresh / name, data, durable=False)
        _write_backbone(source, fresh / BACKBONE_FOLDER)
        write_file(fresh / FACTS_FILE, json_text(facts), durable=False)
        checksums.write_listing(fresh)

    folders.replace_folder(output, fill)
    weights = sum(leaf.size for leaf in abstract.values()) * source.dtype.itemsize
    row = max((len(data) for name, data in content.items() if name.startswith(TASK_FOLDER)), default=0)
    sizes = {
        "program": len(content[PROGRAM_FILE]),
        "backbone": weights,
        "shared": len(content[SHARED_FILE]),
        "row": row,
    }
    return Written(sizes, tasks, seconds)


def _write_backbone(source: Source, folder: epath.Path) -> None:
    names = source.files.tensors.names()
    shapes = {name: source.files.tensors.shape(name) for name in names}
    with TensorWriter(folder, shapes, dtype=source.dtype) as writer, source.files.reading() as read:
        for name in writer.names:
            piece = read(name).astype(source.dtype)
            if not dtypes.all_finite(piece):
                raise UserError(f"{name!r} holds values beyond the range of {source.dtype.name}; allowed: float32")
            writer.append(name, piece)
        writer.finish()


def add_rows(source: Source, output: epath.PathLike, tasks: Sequence[str]) -> Written:
    """Writes the rows of some tasks into an export that is there; nothing else of it changes.

    Raises:
      UserError: an unknown task, no export or one without its listing, or one of another backbone or adapter.
    """
    check_tasks(tasks, source.exported.tasks)
    check_place(output)
    output = epath.Path(output)
    if not (output / FACTS_FILE).exists():
        raise UserError(f"--output={str(output)!r} holds no export; allowed with --task: one that was made without it")
    facts = read_object(output / FACTS_FILE, {"backbone": dict, "adapter": dict})
    for part, fingerprint in (("backbone", source.files.fingerprint), ("adapter", source.fingerprint)):
        there = facts[part].get("fingerprint")
        if there != fingerprint:
            raise UserError(
                f"--output={str(output)!r} was exported with the {part} {str(there)[:12]}, and the tasks belong to the "
                f"{part} {fingerprint[:12]}; allowed: the same one, or an export without --task"
            )
    content = {task_file(task): source.row_bytes(task) for task in tasks}
    # What is listed of the other files stays: recomputed, it would call a damaged or missing one right.
    added = {name: list(checksums.of_bytes(data)) for name, data in content.items()}
    listing = dict(sorted((checksums.listed(output) | added).items()))

    def fill(fresh: epath.Path) -> None:
        make_folder(fresh / TASK_FOLDER)
        for name, data in content.items():
            write_file(fresh / name, data, durable=False)
        write_file(fresh / checksums.LISTING, checksums.listing_text(listing), durable=False)

    folders.replace_folder(output, fill, rewritten=lambda name: name in content or name == checksums.LISTING)
    return Written({"row": max(map(len, content.values()))}, tuple(tasks), 0.0)
