"""Backbone folders: frozen weights, feature settings, vocabulary and fingerprint.

    backbone.json       geometry, feature settings, vocabulary, fingerprint, hashes of every tensor, where it came from
    model.safetensors   weights by dotted name, in the storage dtype; per-layer tensors stacked on a leading axis

The fingerprint identifies what the weights are, not how they are stored: it hashes the tensors before the cast to the
storage dtype. An adapter is only ever run on the backbone whose fingerprint it names.
"""

import dataclasses
import hashlib
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from hra_jax.adapters.base import unbound
from hra_jax.adapters.export import flatten, json_text, tensors_from_bytes, tensors_to_bytes, unflatten, write_file
from hra_jax.errors import UserError
from hra_jax.models import config as model_config
from hra_jax.models.asr import AsrModel
from hra_jax.models.config import EncoderConfig, FeatureConfig

FORMAT = 1
BUILTIN = "builtin:"
_WEIGHTS, _SETTINGS = "model.safetensors", "backbone.json"
STORAGE_DTYPES = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class BackboneFiles:
    """A backbone as read from its folder; `params` is a nested dict of numpy arrays in the storage dtype."""

    folder: epath.Path
    features: FeatureConfig
    encoder: EncoderConfig
    vocabulary: dict  # as `data.text.vocabulary_from_json` takes it
    fingerprint: str
    info: dict  # 'name', 'source', 'license' and what else its maker recorded
    params: dict

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def resolve(location: str) -> epath.Path:
    """The folder of `builtin:NAME` or of a path.

    Raises:
      UserError: there is no such backbone.
    """
    if location.startswith(BUILTIN):
        root = epath.Path(__file__).parent.parent / "builtin"
        folder = root / location.removeprefix(BUILTIN)
        if not (folder / _SETTINGS).exists():
            names = sorted(f"{BUILTIN}{path.parent.name}" for path in root.glob(f"*/{_SETTINGS}"))
            raise UserError(f"backbone = {location!r}: the built-in ones are {', '.join(names) or 'none'}")
        return folder
    folder = epath.Path(location)
    if not (folder / _SETTINGS).exists():
        raise UserError(f"backbone = {location!r}: must be {BUILTIN}NAME or a folder that holds {_SETTINGS}")
    return folder


def abstract_params(features: FeatureConfig, encoder: EncoderConfig):
    """Shapes, dtypes and logical axes of the backbone's parameters, boxed as Flax gives them; nothing is computed."""
    model = AsrModel(features, encoder)
    samples = jnp.zeros((1, features.sample_rate))
    lengths = jnp.full((1,), samples.shape[1], jnp.int32)
    return jax.eval_shape(lambda key: model.init(key, samples, lengths, unbound()), jax.random.key(0))["params"]


def _digest(array) -> str:
    array = np.ascontiguousarray(array)
    return hashlib.sha256(array.view(np.uint8).tobytes() if array.size else b"").hexdigest()


def _fingerprint(hashes: dict, features: FeatureConfig, encoder: EncoderConfig, vocabulary: dict) -> str:
    settings = [hashes, model_config.to_json(features), model_config.to_json(encoder), vocabulary]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save(folder, params: dict, *, features, encoder, vocabulary: dict, dtype: str, info: dict) -> str:
    """Writes a backbone folder.

    Args:
      folder: where to; it is created.
      params: nested dict of float arrays.
      features: feature settings.
      encoder: encoder geometry.
      vocabulary: the vocabulary's `to_json()`.
      dtype: storage dtype, 'bfloat16' or 'float32'.
      info: 'name', 'source', 'license', and anything else worth keeping (plain JSON values).

    Returns:
      The fingerprint.
    """
    if dtype not in STORAGE_DTYPES:
        raise UserError(f"storage dtype {dtype!r}: allowed are {', '.join(STORAGE_DTYPES)}")
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    source = {name: np.asarray(leaf) for name, leaf in flatten(params, separator=".").items()}
    stored = {name: np.ascontiguousarray(leaf.astype(jnp.dtype(dtype))) for name, leaf in source.items()}
    hashes = {name: [list(leaf.shape), _digest(leaf)] for name, leaf in source.items()}
    settings = {
        "format": FORMAT,
        "features": model_config.to_json(features),
        "encoder": model_config.to_json(encoder),
        "vocabulary": vocabulary,
        "fingerprint": _fingerprint(hashes, features, encoder, vocabulary),
        "storage_dtype": dtype,
        "source_sha256": hashes,
        "stored_sha256": {name: _digest(leaf) for name, leaf in stored.items()},
        "info": info,
    }
    # The settings are written last: a folder that has them is complete.
    write_file(folder / _WEIGHTS, tensors_to_bytes(stored))
    write_file(folder / _SETTINGS, json_text(settings))
    return settings["fingerprint"]


def _read_settings(folder: epath.Path) -> dict:
    try:
        settings = json.loads((folder / _SETTINGS).read_text())
    except ValueError as error:
        raise UserError(f"{folder / _SETTINGS}: not JSON ({error})") from error
    needed = ("format", "features", "encoder", "vocabulary", "fingerprint", "source_sha256", "stored_sha256", "info")
    missing = [key for key in needed if key not in settings]
    if missing:
        raise UserError(f"{folder / _SETTINGS}: lacks {missing[0]!r}")
    if settings["format"] != FORMAT:
        raise UserError(f"{folder / _SETTINGS}: format {settings['format']!r}; this version reads {FORMAT}")
    return settings


def _check_shapes(folder, flat: dict, features: FeatureConfig, encoder: EncoderConfig) -> None:
    shapes = {
        name: leaf.shape for name, leaf in flatten(nn.unbox(abstract_params(features, encoder)), separator=".").items()
    }
    for name in sorted(set(shapes) ^ set(flat)):
        what = "lacks the tensor" if name in shapes else "has an unknown tensor"
        raise UserError(f"{folder / _WEIGHTS}: {what} {name!r}")
    for name, leaf in flat.items():
        if leaf.shape != shapes[name]:
            raise UserError(
                f"{folder / _WEIGHTS}: {name!r} has shape {leaf.shape}, its settings ask for {shapes[name]}"
            )


def load(location: str, *, verify: bool = False) -> BackboneFiles:
    """Reads a backbone folder.

    Args:
      location: a folder, or `builtin:NAME`.
      verify: hash every tensor again and compare with what the folder records.

    Raises:
      UserError: nothing there, or the folder contradicts itself; the line names the file and the value.
    """
    folder = resolve(location)
    settings = _read_settings(folder)
    features = model_config.from_json(FeatureConfig, settings["features"])
    encoder = model_config.from_json(EncoderConfig, settings["encoder"])
    try:
        flat = tensors_from_bytes((folder / _WEIGHTS).read_bytes(), name=str(folder / _WEIGHTS))
    except OSError as error:
        raise UserError(f"{folder / _WEIGHTS}: cannot be read ({error.strerror})") from error
    _check_shapes(folder, flat, features, encoder)
    if settings["fingerprint"] != _fingerprint(settings["source_sha256"], features, encoder, settings["vocabulary"]):
        raise UserError(f"{folder / _SETTINGS}: the fingerprint does not match the settings beside it")
    if verify:
        for name, leaf in flat.items():
            if _digest(leaf) != settings["stored_sha256"].get(name):
                raise UserError(f"{folder / _WEIGHTS}: {name!r} is not what was stored; its hash differs")
    return BackboneFiles(
        folder=folder,
        features=features,
        encoder=encoder,
        vocabulary=settings["vocabulary"],
        fingerprint=settings["fingerprint"],
        info=settings["info"],
        params=unflatten(flat, separator="."),
    )
