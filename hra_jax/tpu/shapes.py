"""The programs of a run with shapes for arguments: what is compiled ahead of time, for devices that are not here."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hra_jax.adapters import methods
from hra_jax.adapters.output_kinds import OWN_VOCABULARIES
from hra_jax.config.keys import group
from hra_jax.data import batching
from hra_jax.decoding import step
from hra_jax.decoding.settings import DEFAULT_BEAM
from hra_jax.models import augmentation, automaton_tables, beam
from hra_jax.models.dtypes import compute_dtype
from hra_jax.run import foundation, programs
from hra_jax.run.layout import adapter_method
from hra_jax.tpu.plan import GREEDY_STEPS, LABELS_PER_SECOND
from hra_jax.training import placement, sharding, train_state
from hra_jax.training.step import SOUNDS

_Program = tuple[Callable[..., Any], tuple[Any, ...]]  # a jitted function, and the shapes of its arguments
# Of the language models and the lists of phrases of a batch that is searched: a model of a few thousand texts.
_MODEL = {"states": 2**15, "arcs": 2**16, "rows": 2**10}
_PHRASES = {"states": 2**10, "arcs": 2**12, "rows": 2**6}


@dataclasses.dataclass(frozen=True)
class Job:
    """One program to compile.

    Attributes:
      kind: of `plan.STEPS`.
      seconds: the length bucket.
      rows: utterances of the global batch.
      function: jitted.
      arguments: shapes with shardings.
    """

    kind: str
    seconds: float
    rows: int
    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    def trace(self) -> jax.stages.Traced:
        """The function traced with its arguments."""
        return self.function.trace(*self.arguments)


class Shapes:
    """Everything that a run of a configuration compiles, as shapes.

    Args:
      config: a validated configuration.
      mesh: over the devices to compile for; they may be absent.
      tasks: rows of the task bank.
      labels_per_second: the labels of a bucket have room for so many, rounded up as the loader does.

    Attributes:
      counts: as `training.train_state.accounting` gives them.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: jax.sharding.Mesh,
        *,
        tasks: int,
        labels_per_second: float = LABELS_PER_SECOND,
    ):
        settings, adapter = group(config, ""), group(config, "adapter")
        self._config = config
        self._settings, self._mesh, self._labels = settings, mesh, labels_per_second
        self._batch_settings, self._evaluation_settings = group(config, "batch"), group(config, "eval")
        self._base = foundation.shapes_alone(settings.backbone, group(config, "pretrain"))
        own = adapter.output in OWN_VOCABULARIES and settings.method == "adapter"
        self._outputs = (adapter.output_size or self._base.encoder.vocab_size) if own else 0
        augment = group(config, "augment")
        self._sounds = augmentation.sound_shapes(augment, self._base.features.sample_rate)
        self._method = adapter_method(
            settings, adapter, own=methods.own_settings(config, adapter.name), output_size=self._outputs
        )
        if settings.method == "adapter":
            methods.check(self._method, self._base.encoder)
        self._programs = programs.lay_out_programs(
            self._base,
            self._method,
            mesh=mesh,
            tasks=tasks,
            settings=settings,
            adapter=adapter,
            max_tasks=self._batch_settings.max_tasks,
            augment=augment,
            optimizer=group(config, "optimizer", steps=settings.steps),
        )
        self._weights = self._programs.weights
        self._trained = programs.trained_part(settings, adapter)
        self.counts = train_state.accounting(
            self._weights, tasks, train_state.count(self._base.shapes()), train=self._trained
        )

    def jobs(self, kinds: Sequence[str] = GREEDY_STEPS) -> list[Job]:
        """The programs of those kinds for every bucket, the longest bucket first."""
        batch, buckets = self._batch_settings, self._batch_settings.edges
        train = batching.bucket_rows(buckets, batch_seconds=batch.seconds, multiple=batch.multiple)
        evaluation = batching.bucket_rows(
            buckets, batch_seconds=self._evaluation_settings.batch_seconds, multiple=batch.multiple
        )
        rows = {"train": train, "evaluation": evaluation, "transcription": evaluation, "decode": evaluation}
        return [
            self.job(kind, seconds, rows[kind][position])
            for position, seconds in reversed(list(enumerate(buckets)))
            for kind in kinds
        ]

    def job(self, kind: str, seconds: float, rows: int) -> Job:
        """One program, for a global batch of so many utterances."""
        make: dict[str, Callable[[float, int], _Program]] = {
            "train": self._train,
            "evaluation": self._evaluation,
            "transcription": self._transcription,
            "decode": self._decode,
        }
        function, arguments = make[kind](seconds, rows)
        return Job(kind, seconds, rows, cast(jax.stages.Wrapped, function), arguments)

    def _train(self, seconds: float, rows: int) -> _Program:
        state = self._placed(self._programs.state, self._programs.shardings)
        hyper: dict[str, Any] = {
            "seed": self._replicated((), jnp.uint32),
            "learning_rate": self._replicated((), jnp.float32),
        }
        if self._sounds:
            hyper[SOUNDS] = {kind: self._replicated(shape, jnp.float32) for kind, shape in self._sounds.items()}
        frozen = self._frozen() if self._settings.method == "adapter" else None
        arguments: tuple[Any, ...] = (state, frozen, self._batch(seconds, rows), hyper)
        if not self._programs.bank.in_state:
            optimizer = self._programs.optimizer
            whole = jax.eval_shape(lambda: train_state.create(self._weights, optimizer, train=self._trained))
            arguments += self._programs.bank.more_arguments(
                train_state.bank_of(whole), self._programs.max_tasks, self._replicated
            )
        return self._programs.train, arguments

    def _evaluation(self, seconds: float, rows: int) -> _Program:
        weights = self._shared_weights()
        return self._programs.evaluation, (weights, self._frozen(), self._batch(seconds, rows))

    def _transcription(self, seconds: float, rows: int) -> _Program:
        batch = self._batch(seconds, rows)
        model = programs.model_on(self._mesh, self._base, self._method, settings=self._settings)
        weights = self._shared_weights()
        shared, bank = (weights["shared"], weights["tasks"]) if "tasks" in weights else ({}, {})
        args = (weights.get("backbone", self._frozen()), shared, bank, self._replicated((), jnp.int32))
        inputs = (batch["waveform"], batch["num_samples"], batch["task"], batch.get("symbols"))
        return jax.jit(functools.partial(step.apply_model, model)), args + inputs

    def _decode(self, seconds: float, rows: int) -> _Program:
        """The beam search of what `_transcription` gives, with a language model and phrases for each row.

        Each device searches its own rows.
        """
        function, arguments = self._transcription(seconds, rows)
        log_probs, _ = jax.eval_shape(function, *arguments)
        settings = group(self._config, "decode")
        width = settings.beam or DEFAULT_BEAM

        def decode(tables: dict[str, Any], log_probs: Any, lengths: Any, blanks: Any, rows: dict[str, Any]) -> Any:
            options = {"width": width, "n_best": min(settings.n_best, width)}
            return beam.search(log_probs, lengths, blanks, **options, **tables, **rows)

        sizes = {"model": _MODEL, "phrases": _PHRASES}
        tables = {name: automaton_tables.table_shapes(log_probs.shape[2], **given) for name, given in sizes.items()}
        tables = jax.tree.map(lambda leaf: self._replicated(leaf.shape, leaf.dtype), tables)
        column = self._split((rows,), jnp.int32, "start")
        weights: list[Any] = [self._split((rows,), jnp.float32, name) for name in beam.Weights._fields]
        own = {"model_start": column, "phrase_start": column, "weights": beam.Weights(*weights)}
        given = self._split(log_probs.shape, log_probs.dtype, "log_probs"), column, column, own
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, (tables, *given))
        split = jax.shard_map(decode, mesh=self._mesh, in_specs=specs, out_specs=column.sharding.spec, check_vma=False)
        return jax.jit(split), (tables, *given)

    def _shared_weights(self) -> dict[str, Any]:
        """The weights that a suite is run with: rows of the bank are replicated."""
        if "backbone" in self._weights:
            return self._placed(self._weights, self._programs.shardings.trainable)
        return jax.tree.map(lambda leaf: self._replicated(leaf.shape, leaf.dtype), self._weights)

    def _frozen(self) -> dict[str, Any]:
        shardings = placement.backbone_shardings(self._mesh, self._base.features, self._base.encoder)
        dtype = compute_dtype(self._settings.backbone_dtype)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where), self._base.shapes(), shardings
        )

    def _placed(self, tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings
        )

    def _replicated(self, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(self._mesh))

    def _batch(self, seconds: float, rows: int) -> dict[str, Any]:
        labels = batching.label_capacities(np.zeros(1, np.int64), np.array([int(seconds * self._labels)]), buckets=1)[0]
        shapes = {
            "waveform": ((rows, round(seconds * self._base.features.sample_rate)), jnp.float32),
            "num_samples": ((rows,), jnp.int32),
            "labels": ((rows, labels), jnp.int32),
            "label_lengths": ((rows,), jnp.int32),
            "task": ((rows,), jnp.int32),
            "weight": ((rows,), jnp.float32),
            "utterance": ((rows,), jnp.int32),
        }
        if self._outputs:
            shapes["symbols"] = ((rows, self._outputs), jnp.int32)
        return {name: self._split(shape, dtype, name) for name, (shape, dtype) in shapes.items()}

    def _split(self, shape: tuple[int, ...], dtype: DTypeLike, name: str) -> jax.ShapeDtypeStruct:
        axes = ("batch", *(None,) * (len(shape) - 1))
        split = sharding.sharding_for(self._mesh, axes, shape=shape, leaf=f"batch[{name!r}]")
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)
