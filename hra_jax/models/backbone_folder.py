"""Backbone folders: frozen weights, feature settings, vocabulary and fingerprint.

    backbone.json       format version, version of hra_jax, geometry, feature settings, vocabulary, fingerprint, hashes
                        of every tensor, where it came from
    model.safetensors   weights by dotted name, in the storage dtype; per-layer tensors stacked on a leading axis.
                        Large ones lie in several files beside model.safetensors.index.json
    task_records.safetensors  hashes of what it was trained on, see adapters/task_records.py; absent where none are held

Weights are read and written in pieces: a process holds its part of them, and while it writes, a layer of a tensor.

The fingerprint identifies what the weights are, not how they are stored: it hashes the tensors before the cast to the
storage dtype. An adapter is only ever run on the backbone whose fingerprint it names.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from etils import epath

from hra_jax import __version__
from hra_jax.adapters import task_records
from hra_jax.adapters.base import unbound
from hra_jax.errors import UserError, one_line
from hra_jax.models import weight_hashes
from hra_jax.models.asr import AsrModel
from hra_jax.models.dtypes import STORAGE_DTYPES, all_finite
from hra_jax.models.encoder_config import MOST_TRAINED_SECONDS, EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.models.stored_settings import fingerprinted, from_json, to_json
from hra_jax.models.weight_hashes import Hashes
from hra_jax.storage import folders
from hra_jax.storage.checksums import sha256_of_json
from hra_jax.storage.files import is_remote, remove_file, remove_leftovers, replaced_name, write_file
from hra_jax.storage.json_files import Kind, check_fields, check_shown, json_text, read_object
from hra_jax.storage.safetensors_reader import TensorFiles
from hra_jax.storage.safetensors_writer import SHARD_BYTES, TensorWriter, is_written
from hra_jax.storage.trees import flatten, unflatten

_Result = TypeVar("_Result")
FORMAT = 1
# The fields of backbone.json by format version, and what a folder that lacks one of them means: values of the stored
# format, which never change. Those of 'features' and 'encoder' stand in `models.stored_settings`.
_FIELDS: dict[int, dict[str, Kind]] = {
    1: {
        "hra_jax": str,
        "vocabulary": dict,
        "fingerprint": str,
        "storage_dtype": str,
        "source_sha256": dict,
        "stored_sha256": dict,
        "stored_xxh3": dict,
        "sha256": dict,
        "info": dict,
    }
}
# The release that did not write its version and had no quick hashes, and a folder without records.
_UNSAID: dict[int, dict[str, Any]] = {1: {"hra_jax": "0.1.0", "stored_xxh3": {}, "sha256": {}}}
BUILTIN = "builtin:"
SETTINGS = "backbone.json"
_HASHED_AT_ONCE = 2  # weights, each by a thread
_PIECE = 32 << 20  # bytes of a whole array that are cast, hashed and checked at a time


@dataclasses.dataclass(frozen=True)
class BackboneFiles:
    """A backbone folder whose settings are read and whose weights are known by their shapes.

    Attributes:
      tensors: the weights by dotted name; `load_params` reads them onto a mesh.
      hashes: of each weight as it was stored, where those that `reading` gives are compared with them.
      records: what is held of its training data.
    """

    folder: epath.Path
    features: FeatureConfig
    encoder: EncoderConfig
    vocabulary: dict  # as `data.text.vocabulary_from_json` takes it
    fingerprint: str
    info: dict  # 'name', 'source', 'license' and what else its maker recorded
    tensors: TensorFiles
    hashes: Hashes | None = None
    records: task_records.Records = dataclasses.field(default_factory=dict)

    @property
    def trained_seconds(self) -> float:
        """Seconds of the longest utterances that it was trained on here, its last length bucket; 0: not known."""
        bucket = self.info
        for key in ("source", "config", "batch", "buckets", -1):
            try:
                bucket = bucket[key]
            except (KeyError, IndexError, TypeError):
                return 0.0
        return float(bucket) if isinstance(bucket, int | float) and 0 < bucket <= MOST_TRAINED_SECONDS else 0.0

    @property
    def abstract(self) -> dict:
        """Shapes and storage dtype of the weights: a nested dict of `jax.ShapeDtypeStruct`."""
        return self._tree(lambda name: jax.ShapeDtypeStruct(self.tensors.shape(name), self.tensors.dtype(name)))

    @property
    def params(self) -> dict:
        """All weights, read again each time: a nested dict of numpy arrays in the storage dtype."""
        with self.reading() as read:
            return self._tree(read)

    def read(
        self, name: str, index: Any = (), *, told: Callable[[memoryview], object] = lambda piece: None
    ) -> np.ndarray:
        """A weight, or a part of it, in the storage dtype; `index` and `told` are those of `TensorFiles.read_slice`.

        Raises:
          UserError: a file that has changed or cannot be read, or weights that are not finite.
        """
        found = self.tensors.read_slice(name, index, told=told)
        if not all_finite(found):
            raise self._not_finite(name)
        return found

    def _not_finite(self, name: str) -> UserError:
        return UserError(f"{self.tensors.path(name)}: {name!r} holds NaN or infinity; allowed: finite weights")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[..., np.ndarray]]:
        """Gives a `read` that has whole weights checked by other threads while it reads them; errors as `read`.

        Raises:
          DamagedError: here or at the end of the block, where a weight is not what was stored.
        """
        if self.hashes is None:
            yield self.read
            return
        hashes, waiting = self.hashes, collections.deque[concurrent.futures.Future]()

        def check(name: str, pieces: queue.SimpleQueue[memoryview | None]) -> None:
            digest, finite, dtype = hashes.begin(), True, self.tensors.dtype(name)
            for piece in iter(pieces.get, None):  # which is still in the cache
                digest.update(piece)
                finite = finite and all_finite(np.frombuffer(piece, dtype))
            if not finite:
                raise self._not_finite(name)
            hashes.compare(self.tensors, name, digest)

        def read(name: str, index: Any = ()) -> np.ndarray:
            if index != ():
                return self.read(name, index)
            pieces: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
            waiting.append(pool.submit(check, name, pieces))
            try:
                found = self.tensors.read_slice(name, (), told=pieces.put)
            finally:
                pieces.put(None)
            if len(waiting) > _HASHED_AT_ONCE:  # what waits is in memory
                waiting.popleft().result()
            return found

        with concurrent.futures.ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
            yield read
            for future in waiting:
                future.result()

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))

    def _tree(self, leaf: Callable) -> dict:
        return unflatten({name: leaf(name) for name in self.tensors.names()}, separator=".")


def resolve(location: epath.PathLike) -> epath.Path:
    """The folder of `builtin:NAME` or of a path.

    Raises:
      UserError: there is no such backbone.
    """
    location = os.fspath(location)
    if location.startswith(BUILTIN):
        root = epath.Path(__file__).parent.parent / "builtin"
        folder = root / location.removeprefix(BUILTIN)
        if not (folder / SETTINGS).exists():
            names = sorted(f"{BUILTIN}{path.parent.name}" for path in root.glob(f"*/{SETTINGS}"))
            raise UserError(f"backbone = {location!r}: the built-in ones are {', '.join(names) or 'none'}")
        return folder
    folder = epath.Path(location)
    folders.put_back(folder)
    if not (folder / SETTINGS).exists():
        raise UserError(f"backbone = {location!r}: must be {BUILTIN}NAME or a folder that holds {SETTINGS}")
    return folder


def abstract_params(features: FeatureConfig, encoder: EncoderConfig):
    """Shapes, dtypes and logical axes of the backbone's parameters, boxed as Flax gives them; nothing is computed.

    Raises:
      UserError: each setting is allowed, but not all of them together: a kernel that is longer than a second, for one.
    """
    model = AsrModel(features, encoder)
    samples = jnp.zeros((1, features.sample_rate))
    lengths = jnp.full((1,), samples.shape[1], jnp.int32)
    try:
        return jax.eval_shape(lambda key: model.init(key, samples, lengths, unbound()), jax.random.key(0))["params"]
    except (TypeError, ArithmeticError, ValueError) as error:
        raise UserError(f"features and encoder: these settings make no encoder ({one_line(error)[:300]})") from error


@functools.lru_cache(maxsize=8)
def _shapes(features: FeatureConfig, encoder: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by dotted name."""
    leaves = flatten(nn.unbox(abstract_params(features, encoder)), separator=".")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def _fingerprint(hashes: dict, features: FeatureConfig, encoder: EncoderConfig, vocabulary: dict) -> str:
    settings = [hashes, fingerprinted(features), fingerprinted(encoder), vocabulary]
    return sha256_of_json(settings)


# --- Writing ----------------------------------------------------------------------------------------------------------


def save(
    folder,
    params: dict,
    *,
    features,
    encoder,
    vocabulary: dict,
    dtype: str,
    info: dict,
    max_bytes: int = SHARD_BYTES,
    records: task_records.Records | None = None,
) -> str:
    """Writes a backbone folder from arrays, one after the other.

    Args:
      params: nested dict of float arrays.
      folder, features, encoder, vocabulary, dtype, info, max_bytes, records: as for `write`.

    Returns:
      The fingerprint.

    Raises:
      UserError: as `write`; also where a weight is missing or unknown.
    """
    _check_dtype(dtype)
    leaves, shapes = flatten(params, separator="."), _shapes(features, encoder)
    for name in sorted(set(shapes) ^ set(leaves)):
        what = "lacks the tensor" if name in shapes else "would have an unknown tensor"
        raise UserError(f"{folder}: {what} {name!r}")
    return write(
        folder,
        leaves.__getitem__,
        features=features,
        encoder=encoder,
        vocabulary=vocabulary,
        dtype=dtype,
        info=info,
        max_bytes=max_bytes,
        records=records,
    )


def write(
    folder,
    read: Callable[[str], np.ndarray | Iterable[np.ndarray]],
    *,
    features,
    encoder,
    vocabulary: dict,
    dtype: str,
    info: dict,
    max_bytes: int = SHARD_BYTES,
    records: task_records.Records | None = None,
) -> str:
    """Writes a backbone folder from weights that come one after the other; a folder that is there is replaced.

    Args:
      folder: where to; it is created.
      read: called once with the dotted name of every weight, sorted. Returns the array, or its rows (arrays without
        the leading axis) one after the other, so that no more than a row of it need be in memory.
      features: feature settings.
      encoder: encoder geometry.
      vocabulary: the vocabulary's `to_json()`.
      dtype: storage dtype, 'bfloat16' or 'float32'.
      info: 'name', 'source', 'license', and anything else worth keeping (plain JSON values).
      max_bytes: of the weights in one file; a weight that is larger has a file of its own.
      records: what is held of its training data, see `adapters.task_records`.

    Returns:
      The fingerprint.

    Raises:
      UserError: an unknown storage dtype, or a weight of another shape than the settings ask for, of more than one
        dtype, or with values that are not finite; the folder is then as it was.
    """
    _check_dtype(dtype)
    folder, shapes = epath.Path(folder), _shapes(features, encoder)
    source, stored, quick = {}, {}, {}
    with TensorWriter(folder, shapes, dtype=jnp.dtype(dtype), max_bytes=max_bytes) as writer:
        for name in writer.names:
            given, kept, kept_quick = hashlib.sha256(), hashlib.sha256(), xxhash.xxh3_64()
            for piece in _pieces(name, read(name), shapes[name]):
                rounded = _rounded(name, piece, dtype)
                given.update(weight_hashes.content(piece))
                kept.update(weight_hashes.content(rounded))
                kept_quick.update(weight_hashes.content(rounded))
                writer.append(name, rounded)
            source[name], stored[name] = [list(shapes[name]), given.hexdigest()], kept.hexdigest()
            quick[name] = kept_quick.hexdigest()
        fingerprint = _fingerprint(source, features, encoder, vocabulary)
        settings = {
            "format": FORMAT,
            "hra_jax": __version__,
            "features": to_json(features),
            "encoder": to_json(encoder),
            "vocabulary": vocabulary,
            "fingerprint": fingerprint,
            "storage_dtype": dtype,
            "source_sha256": source,
            "stored_sha256": stored,
            "stored_xxh3": quick,
            "info": info,
        }
        content = task_records.to_bytes(records or {})
        if content is not None:
            settings["sha256"] = {task_records.RECORDS_FILE: hashlib.sha256(content).hexdigest()}
        settings["settings_sha256"] = settings_sha256(settings)
        text = json_text(settings)
        # A folder that has settings is complete: the old ones go before the weights change, the new ones come last.
        remove_file(folder / SETTINGS)
        writer.finish()
        task_records.put(folder, content)
        write_file(folder / SETTINGS, text)
        remove_leftovers(folder, (SETTINGS, task_records.RECORDS_FILE))
    return fingerprint


def is_unfinished(folder: epath.PathLike) -> bool:
    """Whether a folder holds nothing but temporary files of a process that was killed in `write`, or nothing."""
    names = [path.name for path in epath.Path(folder).iterdir()]
    return all(replaced_name(name) and is_own_file(name) for name in names)


def is_own_file(name: str) -> bool:
    """Whether `write` takes care of a file of the folder, by its name: it writes or removes it."""
    return is_written(name) or (replaced_name(name) or name) in (SETTINGS, task_records.RECORDS_FILE)


def add_info(folder: epath.PathLike, info: Mapping[str, Any]) -> None:
    """Adds to the `info` of a backbone folder that `write` has written; its fingerprint stays the same.

    Raises:
      UserError: no backbone there, or damaged settings.
    """
    path = epath.Path(folder) / SETTINGS
    settings = read_object(path, {"info": dict})
    settings["info"] = settings["info"] | dict(info)
    if "settings_sha256" in settings:
        settings["settings_sha256"] = settings_sha256(settings)
    write_file(path, json_text(settings))


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """The SHA-256 of backbone.json as it would be without this."""
    rest = {name: value for name, value in settings.items() if name != "settings_sha256"}
    return hashlib.sha256(json_text(rest).encode()).hexdigest()


def _check_dtype(dtype: str) -> None:
    if dtype not in STORAGE_DTYPES:
        raise UserError(f"storage dtype {dtype!r}: allowed are {', '.join(STORAGE_DTYPES)}")


def _pieces(name: str, value, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A weight in pieces that follow one another in C order, checked against its shape."""
    if hasattr(value, "shape"):
        value = np.asarray(value)
        _check_shape(name, value.shape, shape)
        value = value.reshape(shape or (1,))
        rows = max(1, _PIECE * len(value) // max(1, value.nbytes))
        yield from (value[start : start + rows] for start in range(0, len(value), rows))
        return
    count, dtype = 0, None
    for row in map(np.asarray, value):
        _check_shape(name, (shape[0], *row.shape), shape)
        if dtype not in (None, row.dtype):
            raise UserError(f"{name!r} has rows of {dtype} and of {row.dtype}; allowed: one dtype")
        count, dtype = count + 1, row.dtype
        if count <= shape[0]:
            yield row
    _check_shape(name, (count, *shape[1:]), shape)


def _check_shape(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if tuple(found) != wanted:
        raise UserError(f"{name!r} has shape {tuple(found)}, the settings ask for {wanted}")


def _rounded(name: str, piece: np.ndarray, dtype: str) -> np.ndarray:
    """The values in the storage dtype."""
    with np.errstate(over="ignore"):  # what overflows is refused below
        rounded = piece.astype(jnp.dtype(dtype), order="C", copy=False)
    if not np.isfinite(rounded).all():
        what = f"values beyond the range of {dtype}" if np.isfinite(piece).all() else "NaN or infinity"
        raise UserError(f"{name!r} holds {what}; allowed: finite weights")
    return rounded


# --- Reading ----------------------------------------------------------------------------------------------------------


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in backbone.json.

    Raises:
      UserError: it cannot be read, or holds something else; 'features' and 'encoder' in it must be objects too.
    """
    return read_object(path, {"features": dict, "encoder": dict}, what="a backbone folder that has it")


def geometry(location: epath.PathLike) -> tuple[FeatureConfig, EncoderConfig]:
    """Feature settings and geometry of a backbone folder; nothing else of it is read.

    Raises:
      UserError: no such backbone, or settings that are not right.
    """
    folder = resolve(location)
    return _geometry(folder, read_json(folder / SETTINGS))


def _geometry(folder: epath.Path, settings: dict) -> tuple[FeatureConfig, EncoderConfig]:
    try:
        features = from_json(FeatureConfig, settings["features"])
        return features, from_json(EncoderConfig, settings["encoder"])
    except UserError as error:
        raise UserError(f"{folder / SETTINGS}: {error}") from error


def _read_settings(folder: epath.Path) -> dict[str, Any]:
    """The content of backbone.json, checked, with what its format version leaves unsaid."""
    path = folder / SETTINGS
    settings = read_json(path)
    version = check_fields(settings, {"format": int}, where=str(path))["format"]
    if version not in _FIELDS:
        raise UserError(f"{path}: format {version!r}; this version of hra_jax reads {', '.join(map(str, _FIELDS))}")
    settings = check_fields(_UNSAID[version] | settings, _FIELDS[version], where=str(path))
    check_fields(settings["info"], {"name": str}, where=f"{path}: info")
    check_shown(settings["info"]["name"], where=f"{path}: info.name")
    check_shown(settings["fingerprint"], where=f"{path}: fingerprint")
    if settings["storage_dtype"] not in STORAGE_DTYPES:
        allowed = ", ".join(STORAGE_DTYPES)
        raise UserError(f"{path}: storage_dtype {settings['storage_dtype']!r:.80}; allowed: {allowed}")
    return settings


def _check_tensors(tensors: TensorFiles, shapes: dict[str, tuple[int, ...]], dtype: str) -> None:
    """Checks that the files hold the weights that the settings ask for, and no others."""
    for name, other in tensors.ignored.items():
        raise UserError(f"{tensors.listing}: has the tensor {name!r} of dtype {other}; allowed here: {dtype}")
    for name in sorted(set(shapes) ^ set(tensors.names())):
        what = "lacks the tensor" if name in shapes else "has an unknown tensor"
        raise UserError(f"{tensors.listing}: {what} {name!r}")
    for name, wanted in shapes.items():
        path, found = tensors.path(name), tensors.shape(name)
        if found != wanted:
            raise UserError(f"{path}: {name!r} has shape {found}, its settings ask for {wanted}")
        if tensors.dtype(name).name != dtype:
            raise UserError(f"{path}: {name!r} holds {tensors.dtype(name)}, its settings ask for {dtype}")


def load(location: epath.PathLike, *, verify: bool | None = None) -> BackboneFiles:
    """Reads the settings of a backbone folder and the headers of its weights; the weights are read when they are used.

    A folder that is replaced meanwhile is read again. One that is replaced later gives an error where `hashes` are
    compared; `read_whole` reads the weights with it.

    Args:
      location: a folder, or `builtin:NAME`.
      verify: whether the weights are compared with the hashes that the folder records: True, now, by SHA-256; None, as
        they are read, where they lie on a local disk, by XXH3, which costs next to nothing and finds what disks and
        networks do; False, not at all.

    Raises:
      UserError: nothing there, or the folder contradicts itself; the line names the file and the value.
    """
    return read_whole(location, lambda: _load_once(resolve(location), verify=verify))


def read_whole(location: epath.PathLike, read: Callable[[], _Result]) -> _Result:
    """`folders.read_whole` for a backbone folder, or for `builtin:NAME`, which nobody replaces."""
    builtin = os.fspath(location).startswith(BUILTIN)
    return read() if builtin else folders.read_whole(location, SETTINGS, read)


def _load_once(folder: epath.Path, *, verify: bool | None) -> BackboneFiles:
    settings = _read_settings(folder)
    features, encoder = _geometry(folder, settings)
    tensors = TensorFiles(folder)
    try:
        shapes = _shapes(features, encoder)
    except UserError as error:
        raise UserError(f"{folder / SETTINGS}: {error}") from error
    _check_tensors(tensors, shapes, settings["storage_dtype"])
    if settings["fingerprint"] != _fingerprint(settings["source_sha256"], features, encoder, settings["vocabulary"]):
        raise UserError(f"{folder / SETTINGS}: the fingerprint does not match the settings beside it")
    whole = Hashes(hashlib.sha256, settings["stored_sha256"])
    if verify:
        weight_hashes.verify(tensors, whole)
    beside = verify is None and not is_remote(folder)
    quick = Hashes(xxhash.xxh3_64, settings["stored_xxh3"])
    return BackboneFiles(
        folder=folder,
        features=features,
        encoder=encoder,
        vocabulary=settings["vocabulary"],
        fingerprint=settings["fingerprint"],
        info=settings["info"],
        tensors=tensors,
        hashes=(quick if quick.expected else whole) if beside else None,
        records=task_records.read(folder, settings["sha256"]),
    )


def load_params(files: BackboneFiles, shardings, *, dtype=None) -> dict:
    """Reads the weights onto a mesh; every process reads the shards of its own devices, and holds no more.

    Args:
      files: from `load`.
      shardings: of each weight, a tree like `files.abstract`.
      dtype: what the values are cast to; None keeps the storage dtype.

    Returns:
      A tree of `jax.Array`.

    Raises:
      UserError: a file that has changed or cannot be read, or weights that are not finite.
      DamagedError: a weight is not what was stored; with several processes, each checks some of them.
    """
    flat = flatten(shardings, separator=".")
    with _checking_a_share(files), files.reading() as read:
        return unflatten(
            {name: _placed(files, name, sharding, read=read, dtype=dtype) for name, sharding in flat.items()},
            separator=".",
        )


def _placed(files: BackboneFiles, name: str, sharding, *, read: Callable[..., np.ndarray], dtype) -> jax.Array:
    """One weight on a mesh."""
    parts: dict[tuple, np.ndarray] = {}  # devices that hold the same part share one reading
    # All parts are for this process: it can as well hash the whole.
    whole = read(name) if files.hashes is not None and jax.process_count() == 1 else None

    def part(index) -> np.ndarray:
        key = tuple((entry.start, entry.stop) for entry in index)
        if key not in parts:
            found = read(name, index) if whole is None else whole[index]
            parts[key] = found if dtype is None else found.astype(dtype, copy=False)
        return parts[key]

    return jax.make_array_from_callback(files.tensors.shape(name), sharding, part)


@contextlib.contextmanager
def _checking_a_share(files: BackboneFiles) -> Iterator[None]:
    """Has one of several processes hash its share of the weights beside the block, of which it reads parts only."""
    if files.hashes is None or jax.process_count() == 1:
        yield
        return
    names = files.tensors.names()[jax.process_index() :: jax.process_count()]
    # A reader of its own: that of the block counts what the block reads.
    own = TensorFiles(files.folder)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(weight_hashes.verify, own, files.hashes, names=names)
        yield
        future.result()
