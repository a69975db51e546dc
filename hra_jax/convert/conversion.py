"""The conversion of one folder: settings, then names and shapes of all tensors, then tensor by tensor the weights."""

import hashlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import ml_dtypes
import numpy as np
from etils import epath

from hra_jax.convert import families, features
from hra_jax.convert.family import Architecture, Family
from hra_jax.convert.settings import Count, select
from hra_jax.convert.tensor_rules import LAYERS, Rule
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.models.features import FeatureConfig
from hra_jax.storage import folders, locks
from hra_jax.storage.files import check_regular
from hra_jax.storage.json_files import read_object
from hra_jax.storage.remote import StorageUnavailable
from hra_jax.storage.safetensors_reader import TensorFiles
from hra_jax.storage.trees import flatten
from hra_jax.text.tokenizer_files import FILES
from hra_jax.text.vocabularies import BlankVocabulary, Vocabulary

_MOST_FRONT_MATTER = 2**20  # bytes of README.md that are read
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")


class Ignored(NamedTuple):
    """Source tensors that are not used."""

    pattern: str
    tensors: int
    reason: str


class Report(NamedTuple):
    """What was converted."""

    folder: epath.Path
    fingerprint: str
    family: str
    architecture: str
    features: FeatureConfig
    encoder: EncoderConfig
    parameters: int
    vocabulary: str  # for people
    dtype: str
    ignored: tuple[Ignored, ...]
    info: dict


class _Leaf(NamedTuple):
    """One tensor of the backbone, checked: its name, its shape with the axis of layers, its rule, number of layers."""

    name: str
    shape: tuple[int, ...]
    rule: Rule
    layers: int | None  # None: it is not stacked


def convert(
    source: epath.PathLike,
    output: epath.PathLike,
    *,
    dtype: str = "float32",
    name: str | None = None,
    keep_batch_norm: bool = False,
) -> Report:
    """Converts a published folder to a backbone folder.

    Weights go through tensor by tensor and layer by layer: no more than the source tensors of one layer of one tensor
    of the backbone are in memory.

    Args:
      source: a local or remote folder with config.json, preprocessor_config.json, model.safetensors or its shards and
        their index, and, where the model has a CTC head, the files of its tokenizer. Nothing pickled is read.
      output: a new folder.
      dtype: storage dtype, 'float32' or 'bfloat16'.
      name: of the backbone; None for the name of the source folder.
      keep_batch_norm: leave a BatchNorm beside the depthwise convolution, for full fine-tuning, instead of folding it
        into the convolution. Outputs are the same.

    Raises:
      UserError: what is not there, is damaged or is not supported, in one line that names it. Nothing that counts as a
        backbone remains.
    """
    if not os.fspath(output):
        raise UserError("output = '': must be a new folder, or an empty one")
    source, output = epath.Path(source), epath.Path(output)
    _check_source(source, dtype)
    with locks.hold_beside(output, "convert"):
        folders.recover(output)
        _check_output(output)
        return _converted(source, output, dtype=dtype, name=name, keep_batch_norm=keep_batch_norm)


def _converted(
    source: epath.Path, output: epath.Path, *, dtype: str, name: str | None, keep_batch_norm: bool
) -> Report:
    """As `convert`, from and to folders that are right."""
    where = str(source / "config.json")
    config = read_object(source / "config.json")
    family, named = families.find(config, where)
    architecture = family.architectures[named]
    settings = features.read(source, family.extractor)
    vocabulary = _vocabulary(source, config, family, architecture, where)
    try:
        encoder = family.encoder(config, settings, vocabulary.size, not keep_batch_norm, where)
    except UserError as error:
        # What the encoder itself refuses does not know of the file.
        raise error if str(error).startswith(where) else UserError(f"{where}: {error}") from error
    files = _open(source)
    leaves, ignored = plan(files, family, architecture, settings, encoder)
    check_computed(files, family, architecture, encoder)
    folder = source.name or source.resolve().name  # '.' has no name of its own
    info = {
        "name": name or folder,
        "source": {
            "model_type": config["model_type"],
            "architecture": named,
            "folder": folder,
            "config_sha256": hashlib.sha256((source / "config.json").read_bytes()).hexdigest(),
        },
        "license": _license(source),
        "ignored": [entry._asdict() for entry in ignored],
    }
    by_name = {leaf.name: leaf for leaf in leaves}

    def rows(name: str) -> np.ndarray | Iterator[np.ndarray]:
        found = parts(by_name[name], files)
        return next(found) if by_name[name].layers is None else found

    fingerprint = folders.replace_folder(
        output,
        lambda fresh: backbone_folder.write(
            fresh,
            rows,
            features=settings,
            encoder=encoder,
            vocabulary=vocabulary.to_json(),
            dtype=dtype,
            info=info,
        ),
    )
    return Report(
        folder=output,
        fingerprint=fingerprint,
        family=family.name,
        architecture=named,
        features=settings,
        encoder=encoder,
        parameters=sum(int(np.prod(leaf.shape)) for leaf in leaves),
        vocabulary=_described(vocabulary, architecture),
        dtype=dtype,
        ignored=ignored,
        info=info,
    )


def _check_source(source: epath.Path, dtype: str) -> None:
    if dtype not in backbone_folder.STORAGE_DTYPES:
        raise UserError(f"dtype = {dtype!r}: allowed are {', '.join(backbone_folder.STORAGE_DTYPES)}")
    if not source.is_dir():
        raise UserError(f"source = {str(source)!r}: no such folder")


def _check_output(output: epath.Path) -> None:
    # What a killed conversion left is no reason to refuse the same command.
    if output.exists() and not (output.is_dir() and backbone_folder.is_unfinished(output)):
        raise UserError(f"output = {str(output)!r}: must be a new folder, or an empty one")


def _open(source: epath.Path) -> TensorFiles:
    pickled = sorted(path.name for pattern in _PICKLED for path in source.glob(pattern))
    if pickled and not any(source.glob("model.safetensors*")):
        raise UserError(
            f"{source}: has {pickled[0]} but no model.safetensors; pickled weights are not read, save the model again "
            "as safetensors"
        )
    return TensorFiles(source)


def _vocabulary(source: epath.Path, config: dict, family: Family, architecture: Architecture, where: str) -> Vocabulary:
    """The vocabulary of the CTC head; the blank alone where there is no head."""
    if architecture.head is None:
        return BlankVocabulary()
    defaults = {
        name: Count(default, 0) if default is not None else None for name, default in family.head_defaults.items()
    }
    head = select(config, defaults, where=where)
    if head.vocab_size is None or head.vocab_size < 2:
        raise UserError(f"{where}: vocab_size is {head.vocab_size}; a CTC head needs at least 2 outputs")
    found = family.tokenizer(source, head.vocab_size, head.pad_token_id)
    if found is None:
        raise UserError(f"{source}: has a CTC head but no tokenizer; needed is one of {', '.join(FILES)}")
    return found


def _described(vocabulary: Vocabulary, architecture: Architecture) -> str:
    if architecture.head is None:
        return "the blank alone (no CTC head was published): train one, adapter.output=shared_characters or characters"
    return f"{vocabulary.size} outputs, blank {vocabulary.blank_id}"


def _license(source: epath.Path) -> str:
    """What the front matter of README.md says."""
    path = source / "README.md"
    try:
        check_regular(path)
        with path.open("rb") as stream:
            text = stream.read(_MOST_FRONT_MATTER).decode(errors="replace")
    except FileNotFoundError:
        text = ""
    except StorageUnavailable:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    front = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, flags=re.DOTALL)
    found = re.search(r"^license:[ \t]*['\"]?([\w.+-]+)['\"]?[ \t\r]*$", front[1] if front else "", flags=re.MULTILINE)
    return found[1] if found else "see the publisher"


# --- Names and shapes -------------------------------------------------------------------------------------------------


def plan(
    files: TensorFiles,
    family: Family,
    architecture: Architecture,
    features: FeatureConfig,
    encoder: EncoderConfig,
) -> tuple[tuple[_Leaf, ...], tuple[Ignored, ...]]:
    """Which source tensors make which tensor of the backbone; reads no tensor.

    Args:
      files: the opened folder.
      family: its family.
      architecture: where its encoder and head are.
      features: feature settings.
      encoder: geometry.

    Returns:
      The tensors of the backbone in the order of their names, and the source tensors that are not used.

    Raises:
      UserError: a tensor that is missing, has another shape, or that neither a rule nor a reason knows.
    """
    shapes = {
        name: leaf.shape
        for name, leaf in flatten(nn.unbox(backbone_folder.abstract_params(features, encoder)), separator=".").items()
    }
    rules = {rule.target: rule for rule in family.rules(encoder, architecture)}
    for name in sorted(set(rules) ^ set(shapes)):
        what = "lacks a rule for the tensor" if name in shapes else "has a rule for an unknown tensor"
        raise UserError(f"family {family.name!r} {what} {name!r}; needed is one for each tensor of the backbone")
    present, used, leaves = set(files.names()), set(), []
    for name in sorted(shapes):
        rule, stacked = rules[name], name.startswith(LAYERS)
        leaf = _Leaf(name, shapes[name], rule, encoder.n_layers if stacked else None)
        expected = rule.transform.shapes(leaf.shape[1:] if stacked else leaf.shape)
        for layer in range(encoder.n_layers) if stacked else (None,):
            for key, shape in zip(_keys(rule, layer), expected, strict=True):
                if key not in present:
                    kind = f"; the one that is there has dtype {files.ignored[key]}" if key in files.ignored else ""
                    raise UserError(f"{files.listing}: lacks the weights {key!r} that its config.json asks for{kind}")
                if files.shape(key) != shape:
                    raise UserError(
                        f"{files.path(key)}: {key!r} has shape {files.shape(key)}, config.json asks for {shape}"
                    )
                used.add(key)
        leaves.append(leaf)
    return tuple(leaves), _unused(files, used, family, architecture)


def _keys(rule: Rule, layer: int | None) -> tuple[str, ...]:
    return tuple(source.replace("{n}", str(layer)) for source in rule.sources)


def _unused(files: TensorFiles, used: set, family: Family, architecture: Architecture) -> tuple[Ignored, ...]:
    found: dict[tuple[str, str], int] = {}
    for key in sorted({*files.names(), *files.ignored} - used):
        why = family.reason(key, architecture)
        if why is None:
            raise UserError(f"{files.listing}: holds the tensor {key!r}, which {family.name} does not have")
        found[why] = found.get(why, 0) + 1
    return tuple(Ignored(pattern, count, reason) for (pattern, reason), count in found.items())


def check_computed(files: TensorFiles, family: Family, architecture: Architecture, encoder: EncoderConfig) -> None:
    """Checks that tensors which the encoder computes itself hold what it computes.

    Raises:
      UserError: other values.
    """
    for pattern, compute in family.computed.items():
        key = pattern.replace("{prefix}", architecture.prefix)
        if key not in files.names():
            continue
        # Encoders that were cast as a whole have them rounded; nothing is computed with them.
        precision = max(1e-5, float(ml_dtypes.finfo(files.dtype(key)).eps))
        expected, found = compute(encoder), files.read(key).astype(np.float64)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=precision, atol=0):
            raise UserError(
                f"{files.path(key)}: {key!r} is not what the settings in config.json give (to {precision:.1g})"
            )


# --- Weights ----------------------------------------------------------------------------------------------------------


def parts(leaf: _Leaf, files: TensorFiles) -> Iterator[np.ndarray]:
    """The values of a tensor, float32: layer by layer without the axis of layers, or all at once if it is not stacked.

    Raises:
      UserError: values that are not finite.
    """
    for layer in (None,) if leaf.layers is None else range(leaf.layers):
        keys = _keys(leaf.rule, layer)
        sources = [files.read(key) for key in keys]
        for key, source in zip(keys, sources, strict=True):
            if key.endswith(".running_var") and not (np.isfinite(source) & (source >= 0)).all():
                raise UserError(f"{files.path(key)}: {key!r} holds a variance that is negative or not finite")
        with np.errstate(over="ignore", invalid="ignore"):
            found = np.ascontiguousarray(leaf.rule.transform.apply(*sources).astype(np.float32))
            if not np.isfinite(found).all():
                wrong = [k for k, s in zip(keys, sources, strict=True) if not np.isfinite(s.astype(np.float32)).all()]
                raise UserError(
                    f"{files.path(keys[0])}: {(wrong or keys)[0]!r} holds values that are not finite (NaN or infinite)"
                )
        yield found
