"""Adapter folders with a file for each task, as hra_jax 0.1.0 wrote them where it was asked to."""

import json
from pathlib import Path

from hra_jax.storage import safetensors
from hra_jax.tasks.names import quote_task, task_file_names


def split_into_task_files(folder: Path) -> None:
    """Rewrites an adapter folder: the tensors of each task go into a file of their own."""
    weights, listing, settings = (
        folder / name for name in ("adapter_model.safetensors", "tasks.json", "adapter_config.json")
    )
    tensors = safetensors.from_bytes(weights.read_bytes(), where=str(weights))
    tasks = json.loads(listing.read_text())["tasks"]
    names = task_file_names(entry["name"] for entry in tasks)
    (folder / "tasks").mkdir()
    for entry in tasks:
        prefix = f"tasks.{quote_task(entry['name'])}."
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        entry["file"] = f"tasks/{names[entry['name']]}.safetensors"
        (folder / entry["file"]).write_bytes(safetensors.to_bytes(own))
    weights.write_bytes(safetensors.to_bytes(tensors))
    listing.write_text(json.dumps({"tasks": tasks}))
    written = json.loads(settings.read_text()) | {"one_file_per_task": True}
    written.pop("sha256", None)  # which came later
    settings.write_text(json.dumps(written))
