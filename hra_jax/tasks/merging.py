"""One task merged into the weights of the backbone, which is then a backbone of its own."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from hra_jax.adapters import methods, task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks import library
from hra_jax.tasks.names import check_tasks, quote_task


def why_not_merged(adapter: Adapter) -> str | None:
    """Why a task of this method cannot become a part of the backbone's weights; None where it can."""
    if not adapter.defines("merged"):
        return (
            f"{adapter.name} cannot be merged: its correction depends on activations and is not linear in what a layer "
            "gives, so no other weights of the layer equal it"
        )
    if adapter.own_vocabulary:
        if adapter.shared_output:
            return "the task cannot be merged: its output layer, in another vocabulary, is shared by all tasks"
        return "the task cannot be merged: it has a vocabulary and an output layer of its own"
    return None


def merged_weights(
    exported: ExportedAdapter, name: str, params: Mapping[str, Any], encoder: EncoderConfig
) -> dict[str, Any]:
    """The backbone's weights with one task merged into them, float32.

    Args:
      exported: an adapter of a method that can be merged, see `why_not_merged`.
      name: one of its tasks.
      params: the weights of the backbone.
      encoder: its geometry.

    Raises:
      UserError: an unknown task.
    """
    check_tasks([name], exported.tasks)
    adapter = methods.from_folder(exported.config)
    flat = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params, separator=".").items()}
    row = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), no_parameters() | exported.tasks[name])
    layers = unflatten(flat, separator=".")["encoder"]["layers"]
    # The product of two low-rank factors would be rounded to fewer bits on an accelerator.
    with jax.default_matmul_precision("highest"):
        changed = jax.device_get(adapter.merged(layers, row, encoder))
    flat |= {".".join(("encoder", "layers", *path)): leaf for path, leaf in changed.items()}
    if adapter.output == "task":
        for part, correction in row["all_layers"]["output"].items():
            flat[f"output.{part}"] = flat[f"output.{part}"] + correction
    return unflatten(flat, separator=".")


def write_merged(
    folder: epath.PathLike, exported: ExportedAdapter, task: str, files: backbone_folder.BackboneFiles
) -> tuple[str, str]:
    """Writes the backbone folder that has one task merged into its weights.

    Args:
      folder: what is written.
      exported: an adapter of a method that can be merged, see `why_not_merged`.
      task: one of its tasks.
      files: the backbone that the adapter was trained on.

    Returns:
      The name and the fingerprint of the new backbone.

    Raises:
      UserError: an unknown task.
    """
    check_tasks([task], exported.tasks)
    trained_on = exported.config["backbone"]
    source = {
        "merged": {"method": exported.config["method"], "task": library.extras(exported, task) | {"name": task}},
        "backbone": trained_on | {"source": files.info.get("source")},
    }
    name = f"{trained_on['name'].removeprefix(backbone_folder.BUILTIN)}-{quote_task(task)}"
    fingerprint = backbone_folder.save(
        folder,
        merged_weights(exported, task, files.params, files.encoder),
        features=files.features,
        encoder=files.encoder,
        vocabulary=files.vocabulary,
        dtype="float32",
        info={"name": name, "source": source, "license": files.info.get("license")},
        records=task_records.joined(task_records.merged(exported.records, task), files.records),
    )
    return name, fingerprint
