"""What a command that did not end well has left: what is there, and whether it can be read."""

import json
from pathlib import Path

from hra_jax.adapters import adapter_folder
from hra_jax.models import backbone_folder


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, but for those that are hidden."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in shown}


def readable(folder: Path) -> None:
    """Whatever is there under its own name can be read."""
    for name in files_of(folder):
        file = folder / name
        if ".orbax-checkpoint-tmp" in name:  # no checkpoint has this name
            continue
        try:
            _read(file)
        except ValueError as error:
            raise AssertionError(f"{name}: {error}") from error


def _read(file: Path) -> None:
    if file.suffix == ".json" or file.name == "metadata":
        json.loads(file.read_bytes())
    elif file.suffix == ".jsonl":
        for line in file.read_text().splitlines():
            json.loads(line)
    if file.name == adapter_folder.CONFIG_FILE:
        adapter_folder.read_adapter(str(file.parent))
    elif file.name == backbone_folder.SETTINGS:
        backbone_folder.load(str(file.parent), verify=True)
