"""One task as a PEFT adapter folder, for the published model that its backbone was converted from.

    adapter_config.json          what PEFT's configuration is made of; every adapted module by its whole name
    adapter_model.safetensors    `base_model.model.<module>.<factor>.weight` [out, in]: lora_A, lora_B of a LoRA
    tasks.json                   what the adapter says of the task; PEFT does not read it
    task_records.safetensors     what else it holds for the task, where there is anything; PEFT does not read it

Methods that PEFT knows say so in their own files: `Adapter.peft_config` and `Adapter.peft_factors`.
"""

from collections.abc import Mapping

import numpy as np
from etils import epath

from hra_jax.adapters import adapter_folder, task_records
from hra_jax.adapters.adapter_folder import ExportedAdapter
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.methods import METHODS
from hra_jax.adapters.weights import Tree
from hra_jax.convert import families
from hra_jax.convert.tensor_rules import LAYERS, POINTWISE
from hra_jax.errors import UserError
from hra_jax.models.backbone_folder import BackboneFiles
from hra_jax.storage import safetensors
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import json_text

_PREFIX = "base_model.model."


class _Names:
    """Where the affine maps of a backbone are in the model that it was converted from."""

    def __init__(self, files: BackboneFiles):
        source = files.info.get("source")
        if not (isinstance(source, Mapping) and {"model_type", "architecture"} <= set(source)):
            raise UserError(
                f"{files.folder}: not converted from a published model, so there is no model for PEFT to adapt; "
                "allowed: a backbone that hra_jax.convert wrote"
            )
        self.architecture = source["architecture"]
        family, _ = families.find(
            {"model_type": source["model_type"], "architectures": [self.architecture]}, str(files.folder)
        )
        self._head = family.architectures[self.architecture].head
        found = family.rules(files.encoder, family.architectures[self.architecture])
        self._rules = {rule.target: rule for rule in found}

    def module(self, name: str, layer: int) -> tuple[str, bool]:
        """The module of an affine map in a layer, and whether it is a convolution of one tap."""
        return self._split(f"{LAYERS}{name}.kernel", layer)

    def head(self) -> tuple[str, bool]:
        """As `module`, of the output layer."""
        if self._head is None:
            raise UserError(
                f"{self.architecture} has no output layer, which this task corrects; allowed: a ForCTC model"
            )
        return self._split("output.kernel", 0)

    def _split(self, target: str, layer: int) -> tuple[str, bool]:
        rule = self._rules[target]
        key = rule.sources[0].replace("{n}", str(layer))
        return key.removesuffix(".weight"), rule.transform is POINTWISE


def write(folder: epath.PathLike, exported: ExportedAdapter, task: str, method: Adapter, files: BackboneFiles) -> int:
    """Writes the folder.

    Args:
      folder: where to; it is made.
      exported: an adapter of a method that PEFT has too.
      task: one of its tasks.
      method: its method.
      files: the backbone of the adapter.

    A corrected output layer is written whole, with the base as the backbone stores it: rounded, if that is bfloat16.

    Returns:
      How many modules PEFT adapts.

    Raises:
      UserError: another method, a vocabulary of the task's own, or a backbone that was not converted.
    """
    if not method.defines("peft_config"):
        known = ", ".join(repr(name) for name, cls in METHODS.items() if cls.defines("peft_config"))
        raise UserError(f"PEFT has no method {method.name!r} of hra_jax; allowed: adapters of the method {known}")
    if method.output not in ("backbone", "task"):
        raise UserError(
            f"{method.name}.output = {method.output!r}: PEFT has no vocabulary per task; allowed: 'backbone', 'task'"
        )
    names, row = _Names(files), exported.tasks[task]
    tensors, targets = _factors(names, row, method, files)
    saved = None
    if method.output == "task":
        module, pointwise = names.head()
        saved, correction = [module.rpartition(".")[2]], row["all_layers"]["output"]
        kernel, bias = (np.asarray(files.tensors.read(f"output.{name}"), np.float32) for name in ("kernel", "bias"))
        tensors[f"{_PREFIX}{module}.weight"] = _turned(kernel + correction["kernel"], pointwise)
        tensors[f"{_PREFIX}{module}.bias"] = bias + correction["bias"]
    config = method.peft_config() | {
        "task_type": None,
        "base_model_name_or_path": files.info["name"],
        "inference_mode": True,
        "target_modules": targets,
        "modules_to_save": saved,
    }
    write_file(epath.Path(folder) / adapter_folder.WEIGHTS_FILE, safetensors.to_bytes(tensors))
    write_file(epath.Path(folder) / adapter_folder.CONFIG_FILE, json_text(config))
    (entry,) = (entry for entry in exported.tasks_json if entry["name"] == task)
    write_file(epath.Path(folder) / adapter_folder.TASKS_FILE, json_text({"tasks": [entry | {"row": 0}]}))
    # Nobody has asked for the language model, which gives back the texts that it was made from.
    records = task_records.without(task_records.kept(exported.records, [task]), task_records.LM)
    task_records.put(epath.Path(folder), task_records.to_bytes(records))
    return len(targets)


def _factors(
    names: _Names, row: Tree, method: Adapter, files: BackboneFiles
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of all adapted modules, and the modules' names."""
    tensors: dict[str, np.ndarray] = {}
    targets: set[str] = set()
    for factor in method.peft_factors(row, files.encoder):
        module, pointwise = names.module(factor.affine_map, factor.layer)
        tensors[f"{_PREFIX}{module}.{factor.name}.weight"] = _turned(factor.kernel, pointwise)
        targets.add(module)
    return tensors, sorted(targets)


def _turned(kernel: np.ndarray, pointwise: bool) -> np.ndarray:
    """`[in, out]` as PyTorch has it: `[out, in]`, or `[out, in, 1]` of a convolution."""
    turned = np.asarray(kernel, np.float32).T
    return turned[:, :, None] if pointwise else turned
