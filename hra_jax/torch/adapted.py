"""A transformers model with an exported adapter on its encoder, by forward hooks.

Methods that run here say so in their own files: `Adapter.torch_after_layer`. Outputs are in the order of each task's
own ids, with the blank where its vocabulary has it.

Letters: B batch, T frames, D width, L layers, A tasks, V outputs of the model, O outputs of a task's own vocabulary.
"""

import math
from typing import Any

import numpy as np
import torch
from etils import epath

from hra_jax.adapters import adapter_folder, methods, task_records
from hra_jax.adapters.methods import METHODS
from hra_jax.adapters.output_kinds import NEVER
from hra_jax.convert import families
from hra_jax.convert.family import TorchEncoder
from hra_jax.errors import UserError
from hra_jax.models.encoder_config import EncoderConfig
from hra_jax.storage.json_files import read_object
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks.names import BASE_TASK
from hra_jax.text.task_vocabularies import own_vocabularies
from hra_jax.text.vocabularies import vocabulary_from_json


class AdaptedModel(torch.nn.Module):
    """Runs a transformers model with the adapter of a task for each row of a batch.

    The model stays as it is: its weights are not touched, and without this wrapper around it, it computes what it did.
    Within it padding reaches no frame that counts, as in JAX: wav2vec2-conformers give each utterance what they give it
    alone.

    Args:
      model: the published model, with or without its CTC head, on any device.
      folder: an adapter that hra_jax exported, trained on that model converted by `hra_jax.convert`.
      backbone: the converted folder, of which only backbone.json is read: that the adapter was trained on it is checked
        then. Needed where all tasks share one output layer.

    Raises:
      UserError: an adapter of a method that has no PyTorch formula, or one of another backbone, width, depth or
        vocabulary than the model's.
    """

    def __init__(self, model: torch.nn.Module, folder, *, backbone=None):
        super().__init__()
        self.model, self._folder = model, str(folder)
        self._paths: dict[str, dict[str, str]] = {"shared": {}, "rows": {}}  # names of buffers by path
        exported = adapter_folder.read_adapter(folder, shapes=False)
        self.method = methods.from_folder(exported.config)
        self._check_method()
        self.tasks = tuple(exported.tasks)
        self.set_aside = task_records.set_aside(exported.tasks_json)  # recognised as `__base__`
        self._encoder, parent, self._layers = _blocks_of(model)
        self._adapted = sorted(self.method.layers) or list(range(len(self._layers)))
        # In a tuple, or they would be modules of this one a second time.
        self._parts = parent, _head_of(model)
        self._base, self._own = self._vocabularies(exported, backbone)
        self._check_sizes(exported)
        self._register(exported)
        self._check_runs()
        # Of the batch that runs.
        self._rows: dict[str, torch.Tensor] = {}
        self._active = torch.zeros(0, dtype=torch.bool)
        self._carry: Any = None
        self._read: Any = None
        self._hidden: Any = None
        self._valid: Any = None
        self._done = 0

    def _check_method(self) -> None:
        if not self.method.defines("torch_after_layer"):
            allowed = ", ".join(repr(name) for name, cls in METHODS.items() if cls.defines("torch_after_layer"))
            raise UserError(
                f"{self._folder}: an adapter of the method {self.method.name!r}, which has no PyTorch formula "
                f"(`torch_after_layer`); allowed here: {allowed}"
            )
        try:
            self.method.check_torch()
        except UserError as error:
            raise UserError(f"{self._folder}: {error}") from error

    def _vocabularies(self, exported, backbone):
        """The backbone's vocabulary, and those of the tasks where they do not write in it."""
        content = exported.config["vocabulary"]
        if backbone is not None:
            found = read_object(
                epath.Path(backbone) / "backbone.json",
                {"fingerprint": str, "vocabulary": dict},
                what="a folder that hra_jax.convert wrote",
            )
            adapter_folder.check_backbone(exported, found["fingerprint"], name=backbone, where=self._folder)
            content = found["vocabulary"]
        elif self.method.shared_output:
            raise UserError(
                f"{self._folder}: its tasks share an output layer; backbone=DIR, the converted folder, is needed"
            )
        base = vocabulary_from_json(content)
        if not self.method.own_vocabulary:
            return base, None
        return base, own_vocabularies(exported.config, exported.tasks_json, base, where=self._folder)

    def _register(self, exported) -> None:
        """The adapter's weights as buffers, so that `.to(device)` moves them; row A of the bank is all zeros."""
        for path, leaf in flatten(exported.shared).items():
            self._add("shared", path, leaf)
        for path, entry in exported.config["tensors"]["task"].items():
            path = path.replace(".", "/")
            zeros = np.zeros(entry["shape"], np.float32)
            rows = [flatten(tree)[path] for tree in exported.tasks.values()]
            self._add("rows", path, np.stack([*rows, zeros]))

    def _add(self, part: str, path: str, leaf) -> None:
        name = f"{part}_{path.replace('/', '_')}"
        self.register_buffer(name, torch.from_numpy(np.array(leaf, np.float32)), persistent=False)
        self._paths[part][path] = name

    def _tree(self, part: str, prefix: str) -> dict:
        """The weights under a prefix, float32 whatever the wrapper was cast to."""
        found = {path: name for path, name in self._paths[part].items() if path.startswith(prefix)}
        return {path.removeprefix(prefix): getattr(self, name).float() for path, name in found.items()}

    def _check_sizes(self, exported) -> None:
        declared = exported.config["tensors"]["task"]
        width = self.method.encoder_width({path: tuple(entry["shape"]) for path, entry in declared.items()})
        settings: Any = self.model.config
        found = getattr(settings, "encoder_config", settings).hidden_size
        if width not in (None, found):
            raise UserError(f"{self._folder}: for an encoder of width {width}; the model's is {found}")
        self._width = found
        if self._adapted[-1] >= len(self._layers):
            raise UserError(
                f"{self._folder}: adapts layer {self._adapted[-1]}; the model has layers 0 to {len(self._layers) - 1}"
            )
        kind, (_, head) = type(self.model).__name__, self._parts
        if self._own is None and head is None and self.method.output == "task":
            raise UserError(f"{self._folder}: corrects an output layer; the model {kind} has none")
        self._check_numbers(declared, exported.config["tensors"]["shared"])
        # Without its head a model may give the encoder's output; the blank alone stands for a backbone without one.
        outputs, needed = 1 if head is None else len(head.weight), self._base.size
        if outputs != needed and (head is not None or self._own is not None):
            needed, found = ("no output layer" if count == 1 else f"{count} outputs" for count in (needed, outputs))
            raise UserError(f"{self._folder}: for a model with {needed}; {kind} has {found}")

    def _check_numbers(self, task: dict, shared: dict) -> None:
        """Refuses tensors that are not as many numbers as the settings of the method ask for, before they are made."""
        sizes = {"d_model": self._width, "n_layers": len(self._layers), "vocab_size": self._base.size}
        letters = self.method.letters(EncoderConfig(**sizes, n_heads=1, d_ff=1, kernel=1))
        counts = self.method.formula().evaluate(letters)
        for what, wanted, part in zip(("shared", "task"), counts, (shared, task), strict=True):
            found = sum(math.prod(entry["shape"]) for entry in part.values())
            if found != wanted:
                raise UserError(
                    f"{self._folder}: tensors.{what} are {found:,} numbers; the settings of its method "
                    f"{self.method.name!r} and the model ask for {wanted:,}"
                )

    def _check_runs(self) -> None:
        """Refuses weights of other shapes than the method computes with: one frame of zeros goes through it."""
        x = torch.zeros(1, 1, self._width)
        self._rows = {path: getattr(self, name)[-1:].float() for path, name in self._paths["rows"].items()}
        self._active, self._carry, self._read = torch.ones(1, dtype=torch.bool), None, x
        try:
            shapes = {tuple(self._adapt(x, index).shape) for index in range(len(self._adapted))} | {tuple(x.shape)}
        except (RuntimeError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self._folder}: its tensors do not fit the settings of its method ({error})") from error
        layer = self._of_rows("all_layers/output/") or self._tree("shared", "all_layers/output/")
        outputs = self._base.size if self._own is None else self.method.output_size
        bad = layer and (layer["kernel"].shape[-2:] != (self._width, outputs) or layer["bias"].shape[-1:] != (outputs,))
        if len(shapes) > 1 or bad:
            raise UserError(f"{self._folder}: its tensors do not fit the settings of its method")

    def vocabulary(self, task: str):
        """The vocabulary in which a task writes."""
        (task,) = self._obeyed([task])
        return self._base if self._own is None else self._own.of(task)

    def _obeyed(self, tasks) -> list[str]:
        """What each task is recognised with: itself, or `__base__` where it is set aside. Refuses unknown ones."""
        tasks = list(tasks)
        self._index(tasks)
        return [BASE_TASK if task in self.set_aside else task for task in tasks]

    def _index(self, tasks) -> list[int]:
        known = {name: row for row, name in enumerate(self.tasks)} | {BASE_TASK: len(self.tasks)}
        for name in tasks:
            if name not in known:
                raise UserError(f"unknown task {name!r}; known are {', '.join(known)}")
        return [known[name] for name in tasks]

    def forward(self, *args, tasks, **inputs):
        """Logits of a batch, each row with the adapter of its task.

        Args:
          *args, **inputs: as the model takes them.
          tasks: a task name per row, `__base__` for no adapter.

        Returns:
          `[B, T, V]`, or `[B, T, O]` where tasks have vocabularies of their own. A model without a head gives its
          encoder's output `[B, T, D]`, unless tasks have vocabularies of their own.

        Raises:
          UserError: an unknown task, another number of tasks than rows, or a model in training mode that left out
            layers.
        """
        tasks = self._obeyed(tasks)
        rows = torch.tensor(self._index(tasks), dtype=torch.long, device=next(self.buffers()).device)
        self._rows = {path: getattr(self, name)[rows].float() for path, name in self._paths["rows"].items()}
        self._active = rows < len(self.tasks)
        self._carry, self._done, self._hidden, self._valid = None, 0, None, None
        handles = self._hooks()
        try:
            output = self.model(*args, **inputs)
        finally:
            for handle in handles:
                handle.remove()
        if self._done != len(self._layers):
            raise UserError(
                f"{self._done} of {len(self._layers)} layers ran: the model leaves some out in training; "
                "allowed is eval(), or layerdrop 0"
            )
        return self._logits(output, tasks)

    def _hooks(self) -> list:
        handles = [layer.register_forward_hook(self._after(i)) for i, layer in enumerate(self._layers)]
        if "input" in self.method.taps:
            handles += [layer.register_forward_pre_hook(self._before, with_kwargs=True) for layer in self._layers]
        parent, _ = self._parts
        if not self._encoder.masks_convolutions:
            handles.append(parent.register_forward_pre_hook(self._keep_valid, with_kwargs=True))
            convolutions = [layer.conv_module.depthwise_conv for layer in self._layers]
            handles += [convolution.register_forward_pre_hook(self._zero_invalid) for convolution in convolutions]
        return [*handles, parent.register_forward_hook(self._keep_hidden)]

    def _keep_valid(self, module, args, kwargs):
        del module
        self._valid = args[1] if len(args) > 1 else kwargs.get("attention_mask")

    def _zero_invalid(self, module, args):
        """`[B, C, T]` with zeros after the end of each utterance."""
        del module
        return None if self._valid is None else (args[0] * self._valid[:, None, :].to(args[0].dtype),)

    def _before(self, module, args, kwargs):
        del module
        self._read = args[0] if args else kwargs["hidden_states"]

    def _after(self, number: int):
        def hook(module, args, output):
            del module, args
            self._done += 1
            if number not in self._adapted:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            adapted = self._adapt(hidden, self._adapted.index(number))
            return (adapted, *output[1:]) if isinstance(output, tuple) else adapted

        return hook

    def _adapt(self, x, index: int):
        """A layer's output `[B, T, D]` with the corrections of the rows' tasks; the carry goes on."""
        if len(x) != len(self._active):
            raise UserError(f"{len(self._active)} tasks for a batch of {len(x)} rows: one per row is needed")
        if self._carry is None:
            self._carry = self.method.torch_initial_carry(x)
        of_layer = {path: leaf[:, index] for path, leaf in self._of_rows("per_layer/").items()}
        shared = {path: leaf[index] for path, leaf in self._tree("shared", "per_layer/").items()}
        all_layers = {
            "shared": unflatten(self._tree("shared", "all_layers/")),
            "rows": unflatten(self._of_rows("all_layers/")),
            "active": self._active,
        }
        per_layer = {"shared": unflatten(shared), "rows": unflatten(of_layer)}
        taps = {"input": self._read} if "input" in self.method.taps else {}
        adapted, self._carry = self.method.torch_after_layer((all_layers, per_layer), x, self._carry, taps)
        return adapted

    def _of_rows(self, prefix: str) -> dict:
        return {path.removeprefix(prefix): leaf for path, leaf in self._rows.items() if path.startswith(prefix)}

    def _keep_hidden(self, module, args, output):
        del module, args
        if not isinstance(output, torch.Tensor):
            output = output[0] if isinstance(output, tuple) else output.last_hidden_state
        self._hidden = output

    def _logits(self, output, tasks):
        x, own, (_, head) = self._hidden, self._of_rows("all_layers/output/"), self._parts
        logits: Any = None if head is None else output.logits
        if own:
            added = x.float() @ own["kernel"] + own["bias"][:, None, :]
        elif self._own is not None:
            layer = self._tree("shared", "all_layers/output/")
            added = torch.where(self._active[:, None, None], x.float() @ layer["kernel"] + layer["bias"], 0.0)
        else:
            return x if logits is None else logits
        if self._own is None:
            return logits + added.to(logits.dtype)
        if logits is None:
            # An encoder without a head: every output of a task starts from zero.
            logits = torch.zeros(*x.shape[:2], self._base.size, dtype=x.dtype, device=x.device)
        symbols, columns = (self._of_tasks(table, tasks, x) for table in (self._own.symbols, self._own.columns))
        start = torch.gather(torch.nn.functional.pad(logits, (0, 2)), 2, symbols.clamp(max=self._base.size + 1))
        found = torch.where(symbols > self._base.size, NEVER, start + added.to(start.dtype))
        return torch.gather(found, 2, columns)

    def _of_tasks(self, table, tasks, x):
        """A table of a task's outputs for every frame: int64 `[B, T, O]`."""
        found = torch.from_numpy(np.stack([table(task) for task in tasks])).long().to(x.device)
        return found[:, None, :].expand(-1, x.shape[1], -1)

    def frames(self, attention_mask):
        """How many frames of each row's logits are valid: int64 `[B]`, from the mask `[B, S]` that the model takes."""
        lengths, name = attention_mask.sum(dim=1), self._encoder.frames
        if name is None:
            return lengths
        return next(getattr(module, name) for module in self.model.modules() if hasattr(module, name))(lengths)

    def decode(self, logits, frames, tasks) -> list[str]:
        """Texts by greedy decoding.

        Args:
          logits: `[B, T, V or O]` from `forward`.
          frames: how many of them are valid in each row, from the method of that name.
          tasks: as in `forward`.

        Raises:
          UserError: more frames than there are.
        """
        texts = []
        for scores, length, task in zip(logits, frames, tasks, strict=True):
            if int(length) > len(scores):
                raise UserError(
                    f"{int(length)} valid frames of {len(scores)}: needed are those of the logits, "
                    "frames(attention_mask)"
                )
            vocabulary = self.vocabulary(task)
            labels = torch.unique_consecutive(scores[: int(length)].argmax(dim=-1)).tolist()
            texts.append(vocabulary.decode([label for label in labels if label != vocabulary.blank_id]))
        return texts


def _blocks_of(model: torch.nn.Module) -> tuple[TorchEncoder, torch.nn.Module, list[Any]]:
    """What its family says of the encoder of a model, the encoder, and its blocks.

    Raises:
      UserError: none or several, or a model of a family without an encoder in PyTorch.
    """
    kind, every = type(model).__name__, families.known().values()
    for family in every:
        if family.torch is None and kind in family.architectures:
            raise UserError(f"the model {kind} is of the family {family.name!r}, which hra_jax.torch cannot adapt")
    known = {family.torch.block: family.torch for family in every if family.torch is not None}
    found = []
    for parent in model.modules():
        for child in parent.children():
            if isinstance(child, torch.nn.ModuleList) and len(child) and type(child[0]).__name__ in known:
                found.append((known[type(child[0]).__name__], parent, list(child)))
    if len(found) != 1:
        raise UserError(
            f"the model {kind} has {len(found)} encoders of a kind that is known; needed is one of {', '.join(known)}"
        )
    return found[0]


def _head_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """The output layer of a model, by the names that it has in the families."""
    names = {kind.head for family in families.known().values() for kind in family.architectures.values() if kind.head}
    return next((getattr(model, name) for name in sorted(names) if hasattr(model, name)), None)
