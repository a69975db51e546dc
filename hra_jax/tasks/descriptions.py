"""What is known of the tasks of an exported adapter, as JSON values."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.storage.trees import flatten
from hra_jax.tasks import library
from hra_jax.tasks.names import check_tasks


def norm(tree: Mapping[str, Any]) -> float:
    """The Euclidean norm of all parameters in a tree."""
    leaves = flatten(tree).values()
    return math.sqrt(sum(float(np.sum(np.square(leaf.astype(np.float64)))) for leaf in leaves))


def is_untrained(entry: Mapping[str, Any]) -> bool:
    """Whether a task of tasks.json had no step: it was never drawn, or was added as zero without recordings."""
    return entry.get("step") == 0 and entry.get("init", "zero") == "zero"


def describe(exported: ExportedAdapter) -> dict[str, Any]:
    """What the adapter is, and each of its tasks, as JSON values.

    Returns:
      {"method", "backbone", "shared_parameters", "parameters_per_task", "backbone_parameters", "shared_norm", "tasks"}.
      A task has its entry of tasks.json, "step" and "wer" None where it records none, "parameters" and "norm".
    """
    shared, task = library.parameters(exported)
    config = exported.config
    entries = [
        {"step": None, "wer": None, **entry, "parameters": task, "norm": norm(exported.tasks[entry["name"]])}
        for entry in exported.tasks_json
    ]
    return {
        "method": config["method"],
        "backbone": config["backbone"],
        "shared_parameters": shared,
        "parameters_per_task": task,
        "backbone_parameters": library.accounting(exported, len(entries))["backbone_parameters"],
        "shared_norm": norm(exported.shared),
        "tasks": entries,
    }


def describe_task(exported: ExportedAdapter, name: str) -> dict[str, Any]:
    """What `describe` has for one task, and "tensors": {path: {"shape", "dtype", "norm", "largest", "sha256"}}."""
    check_tasks([name], exported.tasks)
    (entry,) = (entry for entry in describe(exported)["tasks"] if entry["name"] == name)
    tensors = {
        path: {
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "norm": norm({path: leaf}),
            "largest": float(np.abs(leaf.astype(np.float64)).max(initial=0.0)),
            "sha256": library.digest(leaf),
        }
        for path, leaf in flatten(exported.tasks[name], separator=".").items()
    }
    return entry | {"tensors": tensors}
