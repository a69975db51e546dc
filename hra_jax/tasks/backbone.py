"""The backbone of an exported adapter: where it lies, and whether it is the one that the adapter was trained on."""

import contextlib

from hra_jax.adapters import adapter_folder
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder


def resolve_backbone(exported: ExportedAdapter, location: str | None) -> str:
    """Where the backbone of an adapter lies: as given, or as the adapter names it if that is a built-in or a folder.

    Raises:
      UserError: no location is given, and what the adapter names is not here.
    """
    if location is not None:
        return location
    name: str = exported.config["backbone"]["name"]
    for candidate in (name, f"{backbone_folder.BUILTIN}{name}"):
        with contextlib.suppress(UserError):
            backbone_folder.resolve(candidate)
            return candidate
    raise UserError(f"the backbone {name!r} of the adapter is neither built in nor a folder here; give --backbone DIR")


def load_backbone(exported: ExportedAdapter, location: str | None) -> backbone_folder.BackboneFiles:
    """The backbone of an adapter.

    Raises:
      UserError: it is not here, or is another one than the adapter was trained on.
    """
    location = resolve_backbone(exported, location)
    files = backbone_folder.load(location)
    adapter_folder.check_backbone(exported, files.fingerprint, name=f"--backbone={location!r}", where="the adapter")
    adapter_folder.check_geometry(exported, files.encoder, where="the adapter")
    return files
