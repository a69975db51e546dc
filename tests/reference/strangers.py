"""Folders and files as strangers may send them: good ones, damaged by bytes and by settings that are aimed.

Each kind of folder has something that damages it and something that reads it as users do. What is read either works or
is refused by one line that names the file; `Attempts` counts both, and everything else is an error.

As a program, `python -m reference.strangers KIND COUNT SEED BASES`, it tries many in one process, whose memory and time
are bounded, and prints a line of numbers.
"""

import contextlib
import copy
import dataclasses
import faulthandler
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from hra_jax import api, compare
from hra_jax.adapters import adapter_folder
from hra_jax.config.files import config_from_json, validate_config
from hra_jax.convert.conversion import convert
from hra_jax.data.report import DataReport
from hra_jax.data.synthetic.rendering import summary_table
from hra_jax.data.synthetic.speakers import speakers_from_json
from hra_jax.errors import UserError, printable
from hra_jax.models import backbone_folder
from hra_jax.models.stored_settings import from_json
from hra_jax.storage import safetensors
from hra_jax.storage.checksums import of_json
from hra_jax.storage.json_files import read_text
from hra_jax.storage.safetensors_reader import TensorFiles
from hra_jax.tasks import descriptions, library
from hra_jax.text.tokenizer_files import vocabulary_from_folder
from hra_jax.training.metrics import cut_back
from hra_jax.verify import verify

MOST_SECONDS = 20.0  # for one input
MOST_BYTES = 2 << 30  # that one process may take beyond what it has when it begins
KINDS = ("adapters", "backbones", "published", "json", "verify")

# --- What is wrong with an input --------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 1000, 10**6, 10**9, 2**31, 2**63, 10**30, 10**63, -(10**12), 0.5, -0.0,
    1e-320, 1e308, -1e308, 1e30, "", "x", "none", "hra", "a" * 100_000, "\x1b[2J", "a\nb", "\u202eabc", "../../x",
    "/etc",
    "gs://a/b", "\U000e0041", [], [0], [1, 2], [[]], [None], ["a", "a"], list(range(5000)), {}, {"a": {}}, {"": 1},
)  # fmt: skip
RAW = (
    b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"[" * 100, b"[" * 3000, b"[" * 3000 + b"]" * 3000,
    b'{"a":' * 3000, b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"', b"", b"\x00", b"'a'", b"0x10", b"01",
)  # fmt: skip
# Settings that are refused for more than their type, or that would cost or change much if they were believed.
AIMED: dict[str, tuple[Any, ...]] = {
    "name": ("lora", "hra", "residual", "bitfit", "output", "none", "a\nb", "x" * 5000),
    "layers": ([0], [1], [0, 1], [5], [-1], [0, 0], [10**9]),
    "output": ("task", "backbone", "characters", "shared_characters", "sentencepiece", "own"),
    "output_size": (0, 1, 7, 9, 2**20, 10**9),
    "width": (1, 5, 7, 65536, 10**9, -1, 0),
    "rank": (1, 2, 65536, 10**9, -1, 0),
    "alpha": (0.5, 3, 0, -1, 1e30, 1e308, 1e-308),
    "dropout": (0, 0.5, 1, 2),
    "projections": ([], ["attention.query"], ["unknown"], ["ff1.up", "ff1.up"], ["attention.norm"]),
    "recurrence": ("none", "gru", "lstm", "rnn", "mgu", "indrnn", "x"),
    "head": ("linear", "ffn", "lowrank", "x"),
    "head_width": (1, 2, 65536, 10**9),
    "reads": ("layer", "input", "attention.output", "ff1.up", "convolution.depthwise", "x"),
    "activation": ("relu", "tanh", "gelu", "silu", "sigmoid", "x"),
    "shape": ([], [0], [1], [2**40], [2, 2], [10**9, 10**9], [0, 2**39], [1] * 40, [-1], [1.5]),
    "dtype": ("float32", "bfloat16", "float16", "float64", "F32", "BF16", "U8", "object", "C64"),
    "data_offsets": ([0, 0], [0, 2**60], [8, 4], [-8, 0]),
    "row": (0, 1, 10**9, -1),
    "size": (0, 1, 10**9, -1),
    "blank_id": (0, 1, 10**9, -1),
    "vocab_size": (1, 7, 8, 2**20, 10**9),
    "kernel": (0, 1, 2, 512, 10**9),
    "fft": (2, 16, 255, 16384, 10**9),
    "bins": (1, 9, 1024, 10**9),
    "hop": (0, 1e-9, 0.005, 10),
    "window": (0, 1e-9, 0.1, 10),
    "sample_rate": (1, 7999, 16000, 768_000, 10**9),
    "d_model": (2, 16, 18, 65536, 10**9),
    "n_layers": (1, 3, 2048, 10**9),
    "n_heads": (1, 3, 8, 10**9),
    "d_ff": (1, 2**18, 10**9),
    "subsampling": (1, 2, 4, 8, 320),
    "subsampler": ("conv2d", "projection", "conv1d", "conv2d_separable", "wave_cnn"),
    "position": ("none", "xl", "shaw", "rope_in", "rope_qk"),
    "context": ("full", "window", "chunk"),
    "storage_dtype": ("float32", "bfloat16", "float16"),
    "format": (0, 1, 2, True),
    "format_version": (0, 1, 2, True),
    "backbone_parameters": (0, 1, -1, 10**30),
    "model_type": ("parakeet_ctc", "wav2vec2-bert", "lasr_ctc", "x"),
    "num_hidden_layers": (0, 1, 1536, 10**9),
    "hidden_size": (0, 8, 65536, 10**9),
    "type": ("characters", "ctc_tokens", "tokenizer", "sentencepiece", "blank", "Unigram", "BPE", "WordPiece"),
}


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


def damaged_json(source: random.Random, value: Any) -> Any:
    """A JSON value with one to three things changed in it."""
    value = copy.deepcopy(value)
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))[1:]
        aimed = [path for path in places if path[-1] in AIMED]
        if not places:
            return copy.deepcopy(source.choice(VALUES))
        path = source.choice(aimed if aimed and source.random() < 0.6 else places)
        node = value
        for key in path[:-1]:
            node = node[key]
        _change(source, node, path[-1])
    return value


def _change(source: random.Random, node: Any, key: Any) -> None:
    act = source.random()
    if key in AIMED and act < 0.7:
        node[key] = copy.deepcopy(source.choice(AIMED[key]))
    elif act < 0.8:
        node[key] = copy.deepcopy(source.choice(VALUES))
    elif act < 0.88:
        del node[key]
    elif act < 0.94 and isinstance(node, dict):
        name = source.choice(("", "x", "\u0000", "shared", "a.b", "a" * 2000, *AIMED))
        node[name] = copy.deepcopy(node[key])
    else:
        node[key] = [node[key]]


def damaged_bytes(source: random.Random, content: bytes) -> bytes:
    """Bytes with some of them changed, gone, twice or in addition."""
    found = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 8))):
        # The start of a file says most about the rest.
        at = source.randrange(min(len(found), source.choice((16, 400, 2**40))) + 1)
        act = source.randrange(6)
        if act == 0 and at < len(found):
            found[at] ^= 1 << source.randrange(8)
        elif act == 1:
            del found[at:]
        elif act == 2:
            found[at : at + source.choice((1, 8, 100))] = b""
        elif act == 3:
            found[at:at] = found[at : at + source.choice((1, 50, 1000))]
        elif act == 4:
            found[at : at + source.choice((0, 1, 8))] = source.randbytes(source.choice((1, 8, 64)))
        else:
            found[at : at + source.choice((0, 1, 10))] = source.choice(RAW)
    return bytes(found)


def damage_file(source: random.Random, path: Path) -> None:
    """Puts something else in the place of a file."""
    content = path.read_bytes()
    act = source.randrange(7)
    path.unlink()
    if act == 0:
        path.mkdir()
    elif act == 1:
        os.mkfifo(path)
    elif act == 2:
        path.symlink_to(source.choice(("/dev/zero", "/etc/passwd", "nothing", path.name)))
    elif act == 3:
        path.write_bytes(b"")
    elif act == 4:
        path.write_bytes(content)
        os.truncate(path, source.choice((2**31, 2**40)))  # a file of holes
    elif act == 5:
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def edit_json(path: Path, source: random.Random) -> None:
    """Damages a file of JSON by its values, or by its bytes."""
    act = source.random()
    if act > 0.95:
        damage_file(source, path)
        return
    if path.stat().st_size > 10**6:  # of holes
        return
    # A file of lines has one that is damaged; another file is one text.
    lines = path.read_bytes().splitlines(keepends=True) if path.suffix == ".jsonl" else [path.read_bytes()]
    number = source.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[number]) if act < 0.7 else None
    except (ValueError, IndexError):  # damaged already
        value = None
    if value is None:
        path.write_bytes(damaged_bytes(source, path.read_bytes()))
        return
    lines[number] = json.dumps(damaged_json(source, value)).encode() + b"\n"
    path.write_bytes(b"".join(lines))


def edit_tensors(path: Path, source: random.Random) -> None:
    """Damages a file of tensors: its values, its tensors, its header, or its bytes."""
    if path.stat().st_size > 10**6:  # of holes
        return
    act, content = source.randrange(5), path.read_bytes()
    if act == 0:
        path.write_bytes(damaged_bytes(source, content))
        return
    if act == 1:
        length = int.from_bytes(content[:8], "little")
        try:
            value = json.loads(content[8 : 8 + length])
        except ValueError:  # damaged already
            return
        header = json.dumps(damaged_json(source, value)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        return
    if act == 2 and source.random() < 0.3:
        damage_file(source, path)
        return
    try:
        tensors = safetensors.from_bytes(content, where="x")
    except UserError:  # damaged already
        return
    name = source.choice(sorted(tensors))
    changed = tensors[name].copy()
    if act == 2:
        changed = changed.astype(source.choice((np.float64, np.float16, np.int8, ml_dtypes.bfloat16, np.bool_)))
    elif act == 3 and changed.size and safetensors.dtype_name(changed.dtype) in safetensors.FLOATS:
        changed.reshape(-1)[source.randrange(changed.size)] = source.choice((np.nan, np.inf, -np.inf, 3e38, -3e38))
    else:
        shape = (
            [*changed.shape, 1] if source.random() < 0.3 else [size + source.choice((-1, 1)) for size in changed.shape]
        )
        changed = np.zeros([max(size, 0) for size in shape], changed.dtype)
    tensors[name if source.random() < 0.9 else "x" * 500] = changed
    if source.random() < 0.1:
        del tensors[source.choice(sorted(tensors))]
    path.write_bytes(safetensors.to_bytes(tensors))


# --- What reads an input ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Attempts:
    """Counts what was read and what was refused."""

    kind: str
    bases: Path
    runs: bool  # whether what loads is also run: that compiles programs
    read: int = 0
    refused: int = 0
    slowest: float = 0.0

    def once(self, number: int, seed: str) -> None:
        """Tries one input."""
        source = random.Random(f"{self.kind} {seed} {number}")
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "stranger"
            act = getattr(self, f"_{self.kind}")(source, folder)
            started = time.monotonic(), time.process_time()
            try:
                act()
                self.read += 1
            except UserError as error:
                self.refused += 1
                line = str(error)
                assert line.isprintable() and len(line) < 5000, f"{self.kind} {seed} {number}: {line!r}"
                files = {file.name for file in Path(place).rglob("*")}  # what was made of the folder too
                assert any(name in line for name in files), f"{self.kind} {seed} {number} names no file: {line}"
            except Exception as error:  # noqa: BLE001 - it is what must not happen, and is told with its number
                raise AssertionError(f"{self.kind} {seed} {number}: {type(error).__name__}: {error}") from error
            # Compiling is most of it, which several processes at once make longer, and several threads.
            seconds = min(time.monotonic() - started[0], time.process_time() - started[1])
            self.slowest = max(self.slowest, seconds)
            assert seconds < MOST_SECONDS, f"{self.kind} {seed} {number}: {seconds:.1f} s"

    def _copy(self, source: random.Random, group: str, folder: Path) -> str:
        name = source.choice(sorted(path.name for path in (self.bases / group).iterdir()))
        shutil.copytree(self.bases / group / name, folder)
        return name

    def _adapters(self, source: random.Random, folder: Path) -> Callable[[], None]:
        self._copy(source, "adapters", folder)
        for _ in range(source.choice((1, 1, 2))):
            name = source.choice(("adapter_config.json",) * 4 + ("tasks.json", "adapter_model.safetensors"))
            if not (folder / name).is_file():
                continue
            if name.endswith("s"):
                edit_tensors(folder / name, source)
            else:
                edit_json(folder / name, source)
        if source.random() < 0.8:
            unsign(folder / "adapter_config.json")
        return lambda: self._use_adapter(folder)

    def _use_adapter(self, folder: Path) -> None:
        exported = adapter_folder.read_adapter(folder)
        descriptions.describe(exported)
        if len(exported.tasks) > 1:
            library.write(folder, library.renamed(exported, next(iter(exported.tasks)), "another"))
        model = api.load_adapter(folder, self._backbone())
        if self.runs:
            self._run(
                lambda waves: model.transcribe(waves, sample_rate=8000, tasks=[next(iter(model.tasks), "__base__")])
            )

    def _backbone(self) -> api.Backbone:
        if not hasattr(self, "_loaded"):
            self._loaded = api.load_backbone(str(self.bases / "backbones" / "micro"))
        return self._loaded

    def _run(self, transcribe: Callable[[list], list[str]]) -> None:
        (text,) = transcribe([np.sin(np.arange(4000, dtype=np.float32))])
        assert isinstance(text, str)

    def _backbones(self, source: random.Random, folder: Path) -> Callable[[], None]:
        self._copy(source, "backbones", folder)
        settings = folder / "backbone.json"
        edit = source.choice((edit_json, edit_json, edit_json, edit_tensors))
        files = [settings] if edit is edit_json else sorted(folder.glob("*.safetensors"))
        index = folder / "model.safetensors.index.json"
        edit(source.choice([*files, index] if edit is edit_json and index.exists() else files), source)
        if settings.is_file() and settings.stat().st_size < 10**6 and source.random() < 0.8:
            _sign(settings)
        return lambda: self._use_backbone(folder)

    def _use_backbone(self, folder: Path) -> None:
        files = backbone_folder.load(str(folder))
        backbone = api.load_backbone(str(folder))
        # What is as large as it may be is slow, and is not wrong.
        if self.runs and files.encoder.kernel < 100 and files.features.fft <= 1024:
            self._run(lambda waves: backbone.transcribe(waves, sample_rate=files.features.sample_rate))

    def _published(self, source: random.Random, folder: Path) -> Callable[[], None]:
        self._copy(source, "published", folder)
        for _ in range(source.choice((1, 1, 2))):
            file = source.choice(sorted(path for path in folder.iterdir() if path.is_file()))
            if file.suffix == ".json":
                edit_json(file, source)
            elif file.suffix == ".safetensors":
                edit_tensors(file, source)
            else:
                file.write_bytes(damaged_bytes(source, file.read_bytes()))
        output = folder.parent / "converted"

        def use() -> None:
            try:
                convert(folder, output)
            except UserError:
                assert not (output / "backbone.json").exists()
                raise
            self._use_backbone(output)

        return use

    def _json(self, source: random.Random, folder: Path) -> Callable[[], None]:
        reader = source.choice(sorted(READERS))
        shutil.copytree(self.bases / "json" / reader, folder)
        edit_json(source.choice(sorted(path for path in folder.rglob("*.json*") if path.is_file())), source)
        return lambda: READERS[reader](folder)

    def _verify(self, source: random.Random, folder: Path) -> Callable[[], None]:
        group = source.choice(("runs", "runs", "adapters", "backbones"))
        self._copy(source, group, folder)
        for _ in range(source.choice((1, 1, 2))):
            file = source.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
            if file.stat().st_size > 10**6:  # of holes
                continue
            if file.suffix == ".safetensors" and source.random() < 0.7:
                edit_tensors(file, source)
            elif file.name == "metadata" or file.suffix in (".json", ".jsonl"):
                edit_json(file, source)
            elif file.stat().st_size and source.random() < 0.7:
                file.write_bytes(damaged_bytes(source, file.read_bytes()))
            else:
                damage_file(source, file)
        if source.random() < 0.8:
            sign_run(folder)

        def use() -> None:
            for part in verify(folder):
                assert all(type(text) is str for fault in part.faults for text in fault)
                for file, fault in part.faults:
                    # As it is told of it would be refused.
                    raise UserError(f"{folder}: {part.name}: {printable(file)}: {printable(fault)}"[:4000])

        return use


def sign_run(folder: Path) -> None:
    """Gives the listings and the checksums of a run's damaged files what belongs to them, as an attacker would."""
    sums = sorted(folder.glob("checkpoints/*/checksums/metadata"))
    for file in (*sums, *sorted(folder.rglob("files.json"))):
        if not file.is_file() or file.stat().st_size > 10**6:
            continue
        try:
            content = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            continue
        if not isinstance(content, dict):
            continue
        if file in sums:
            rows = file.parent.parent / "rows" / "metadata"
            with contextlib.suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
                if rows.is_file() and rows.stat().st_size < 10**6:
                    content["items"]["rows"] = of_json(json.loads(rows.read_bytes()))
            content.pop("self", None)
            file.write_text(json.dumps(content | {"self": of_json(content)}))
        elif "files" in content:
            file.write_text(json.dumps({"files": content["files"], "crc32": of_json(content["files"])}) + "\n")


def unsign(config: Path) -> None:
    """Takes the hashes of the other files out of an adapter_config.json, as who changes these would."""
    if not config.is_file() or config.stat().st_size > 10**6:
        return
    try:
        content = json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(content, dict) and content.pop("sha256", None) is not None:
        config.write_text(json.dumps(content))


def _sign(settings: Path) -> None:
    """Gives a damaged backbone.json the fingerprint that belongs to it, as an attacker would."""
    try:
        content = json.loads(settings.read_text())
        parts = (from_json(backbone_folder.FeatureConfig, content["features"]),)
        parts += (from_json(backbone_folder.EncoderConfig, content["encoder"]),)
        content["fingerprint"] = backbone_folder._fingerprint(content["source_sha256"], *parts, content["vocabulary"])
        settings.write_text(json.dumps(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # it is refused before anybody looks at its fingerprint


def _configuration(folder: Path) -> None:
    where = folder / "config.json"
    try:
        validate_config(config_from_json(read_text(where), notify=False), stored=True)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error  # its callers say whose it is


def _tokenizer(folder: Path) -> None:
    found = vocabulary_from_folder(folder, 6, int((folder / "blank").read_text()))
    if found is not None:
        found.decode(found.encode("ab c"))


def _metrics(folder: Path) -> None:
    try:
        cut_back(folder / "metrics.jsonl", 2)
    except OSError as error:  # its caller says so in one line
        raise UserError(f"{folder}: {error}") from error


READERS: dict[str, Callable[[Path], Any]] = {
    "adapter": adapter_folder.read_adapter,
    "backbone": lambda folder: backbone_folder.load(str(folder)),
    "shards": lambda folder: TensorFiles(folder),
    "results": lambda folder: compare.compare([folder, folder / "same"], samples=5),
    "config": _configuration,
    "metrics": _metrics,
    "speakers": lambda folder: speakers_from_json(folder / "speakers.json"),
    "report": lambda folder: DataReport().read(folder / "data_report.json"),
    "rendering": summary_table,
    "symbols": _tokenizer,
    "tokenizer": _tokenizer,
}


# --- Many in a process of their own -----------------------------------------------------------------------------------


def most_memory() -> int:
    """The most bytes that this process has had in memory. (That of `resource` begins with its parent's.)"""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def main(kind: str, count: str, seed: str, bases: str) -> None:
    """Tries `count` inputs of a kind."""
    attempts = Attempts(kind, Path(bases), runs=True)
    before, taken = most_memory(), 0
    for number in range(int(count)):
        # Ends the process, with the place where it hangs.
        faulthandler.dump_traceback_later(3 * MOST_SECONDS, exit=True)
        print(f"input {number}", file=sys.stderr, flush=True)
        attempts.once(number, seed)
        taken = most_memory() - before
        assert taken < MOST_BYTES, f"{kind} {seed} {number}: {taken / 1e9:.1f} GB"
    print(
        f"{kind}, seed {seed}: {count} inputs, {attempts.read} read, {attempts.refused} refused, "
        f"slowest {attempts.slowest:.1f} s, {taken / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
