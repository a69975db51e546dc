"""The train step and the evaluation step, as pure functions of (trainable, frozen, batch).

A batch is a dict of arrays: waveform `[B, S]`, num_samples, label_lengths, task `[B]` int32, labels `[B, U]` int32,
weight `[B]` float32 (0 for a row that does not count), and `symbols` `[B, O]` int32 where tasks have vocabularies of
their own (`Adapter.after_output`).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hra_jax.adapters import task_rows
from hra_jax.adapters.base import bind, unbound
from hra_jax.errors import UserError
from hra_jax.models import ctc
from hra_jax.models.asr import AsrModel, apply_with_voice
from hra_jax.models.augmentation import Sounds
from hra_jax.training import train_state
from hra_jax.training.optimizer import (
    OptimizerConfig,
    Scalar,
    dense,
    global_norm,
    learning_rate,
    row_norms,
    update_rows,
)
from hra_jax.training.train_state import TrainState

Tree = dict[str, Any]
Metrics = dict[str, jax.Array]
SKIPPED = "skipped"  # metric: 1 for a step that has changed nothing but its number, as something was not finite
LOG_PROBS = "log_probs"  # of an evaluation step, where a decoder is to have them
SOUNDS = "sounds"  # of `hyper`: `models.augmentation.Sounds`
LOST = "utterances_without_task"  # metric: how many name a task that is not in the bank, or one beyond `max_tasks`


def forward(
    model: AsrModel,
    backbone: Tree,
    shared: Tree | None,
    rows: Tree | None,
    index: jax.Array,
    batch: Tree,
    *,
    rngs: dict[str, jax.Array] | None = None,
    sounds: Sounds | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities `[B, T, V]` float32 and lengths `[B]` int32 of a batch whose task rows are already gathered.

    `index` `[B]` is the slot of each utterance's task among `rows`; K or beyond means `__base__`. With `shared` None
    there is no adapter at all. `sounds` is what augmentation draws from.
    """
    bound = unbound()
    if shared is not None:
        assert rows is not None, "an adapter has rows"
        bound = bind(model.adapter, model.encoder, shared, rows, index)
    args = (batch["waveform"], batch["num_samples"], bound, batch.get("symbols"), sounds)
    outputs: Any = model.apply({"params": backbone}, *args, rngs=rngs)
    log_probs, lengths = outputs
    return log_probs, lengths


def _loss_sums(
    model: AsrModel,
    backbone: Tree,
    shared: Tree | None,
    rows: Tree | None,
    index: jax.Array,
    batch: Tree,
    blank_id: int,
    rngs: dict[str, jax.Array],
    sounds: Sounds | None,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sum of losses, and (utterances that counted, infeasible utterances)."""
    log_probs, lengths = forward(model, backbone, shared, rows, index, batch, rngs=rngs, sounds=sounds)
    with jax.named_scope("ctc_loss"):
        loss, feasible = ctc.ctc_loss(log_probs, lengths, batch["labels"], batch["label_lengths"], blank_id)
    counted = batch["weight"] * feasible
    return (loss * counted).sum(), (counted.sum(), (batch["weight"] * ~feasible).sum())


def _rngs(model: AsrModel, seed: Scalar, step: jax.Array, part: Scalar) -> dict[str, jax.Array]:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), part)
    augment_key, dropout_key = jax.random.split(key)
    dropout = model.dropout or model.adapter.dropout
    return {"augment": augment_key} | ({"dropout": dropout_key} if dropout else {})


def _gradients(
    model: AsrModel,
    learned: Tree,
    frozen: Tree | None,
    shared: Tree | None,
    index: jax.Array,
    batch: Tree,
    blank_id: int,
    hyper: Tree,
    step: jax.Array,
    accumulate: int,
) -> tuple[jax.Array, jax.Array, jax.Array, Tree]:
    """Gradient of the mean loss over the utterances of the global batch, accumulated over `accumulate` micro-batches.

    `shared` is what the tasks share where it is not among `learned`, and `hyper` what the train step takes. The result
    is the mean loss, how many utterances counted, how many were infeasible, and the gradient.
    """
    sounds = hyper.get(SOUNDS)

    def loss_fn(
        learned: Tree, part: Tree, part_index: jax.Array, number: Scalar
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        args: tuple[Tree, Tree | None, Tree | None]
        if "backbone" in learned:
            args = (learned["backbone"], None, None)
        else:
            assert frozen is not None, "an adapter trains on a frozen backbone"
            args = (frozen, learned.get("shared", shared), learned["rows"])
        return _loss_sums(model, *args, part_index, part, blank_id, _rngs(model, hyper["seed"], step, number), sounds)

    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulate == 1:
        (loss, (counted, infeasible)), grads = value_and_grad(learned, batch, index, 0)
    else:
        # Part i takes rows i, i + accumulate, ...: each device splits the rows that it already holds.
        def split(leaf: jax.Array) -> jax.Array:
            return jnp.moveaxis(leaf.reshape(-1, accumulate, *leaf.shape[1:]), 1, 0)

        parts = jax.tree.map(split, (batch, index))

        def body(sums: Any, part: Any) -> tuple[Any, None]:
            number, (part_batch, part_index) = part
            (loss, aux), grads = value_and_grad(learned, part_batch, part_index, number)
            return jax.tree.map(jnp.add, sums, (loss, aux, grads)), None

        zero = jnp.zeros((), jnp.float32)
        start = (zero, (zero, zero), jax.tree.map(jnp.zeros_like, learned))
        (loss, (counted, infeasible), grads), _ = jax.lax.scan(body, start, (jnp.arange(accumulate), parts))
    scale = 1.0 / jnp.maximum(counted, 1.0)
    grads = jax.tree.map(lambda g: g * scale, grads)
    return loss * scale, counted, infeasible, grads


def make_train_step(
    model: AsrModel, config: OptimizerConfig, *, blank_id: int, seed: int, max_tasks: int = 1, accumulate: int = 1
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds `train_step(state, frozen, batch, hyper=None) -> (state, metrics)`.

    `hyper` is seed and learning rate as arguments of the step, {'seed': uint32, 'learning_rate': float32}, scalars.
    They take the place of the two settings and leave the program the same, so that runs that differ in them alone share
    a compilation. It also has the recordings that augmentation draws from, under `SOUNDS`, where there are some.

    A step whose loss or gradient is not finite changes no weight, moment or count: the metric `SKIPPED` is then 1.

    Args:
      model: the encoder, with its adapter method and augmentation.
      config: optimizer settings.
      blank_id: id of the blank.
      seed: randomness is `fold_in(seed, step)`, so none is kept in the state.
      max_tasks: K, the most distinct tasks in a global batch. Utterances of tasks beyond it, and of tasks that are not
        in the bank, weigh nothing and are counted in the metric `LOST`; the batcher makes no such batch.
      accumulate: micro-batches that the gradient of a batch is accumulated over.
    """

    def train_step(
        state: TrainState, frozen: Tree | None, batch: Tree, hyper: Tree | None = None
    ) -> tuple[TrainState, Metrics]:
        hyper = {"seed": seed, "learning_rate": config.learning_rate} if hyper is None else hyper
        if batch["waveform"].shape[0] % accumulate:
            raise UserError(f"accumulate = {accumulate}: must divide the batch of {batch['waveform'].shape[0]} rows")
        advance = backbone_step if "backbone" in state.trainable else adapter_step
        trainable, optimizer, metrics = advance(state, frozen, batch, hyper)
        metrics["learning_rate"] = learning_rate(config, peak=hyper["learning_rate"])(state.step)
        return state.replace(step=state.step + 1, trainable=trainable, optimizer=optimizer), metrics

    def gradients(
        learned: Tree,
        frozen: Tree | None,
        shared: Tree | None,
        index: jax.Array,
        batch: Tree,
        hyper: Tree,
        step: jax.Array,
    ) -> tuple[Tree, Metrics]:
        # A row without weight has no sound: whatever its samples hold (NaN too), 0 x loss would not keep it out.
        batch = batch | {"num_samples": jnp.where(batch["weight"] > 0, batch["num_samples"], 0)}
        loss, counted, infeasible, grads = _gradients(
            model, learned, frozen, shared, index, batch, blank_id, hyper, step, accumulate
        )
        return grads, {"loss": loss, "utterances": counted, "infeasible": infeasible}

    def backbone_step(state: TrainState, frozen: Tree | None, batch: Tree, hyper: Tree) -> tuple[Tree, Tree, Metrics]:
        learned, index = {"backbone": state.trainable["backbone"]}, jnp.zeros_like(batch["task"])
        grads, metrics = gradients(learned, frozen, None, index, batch, hyper, state.step)
        metrics["gradient_norm"] = global_norm(grads["backbone"])
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        metrics[SKIPPED] = (~good).astype(jnp.float32)
        weights, moments = _dense_update(config, "backbone", grads["backbone"], state, hyper["learning_rate"], good)
        return {"backbone": weights}, {"backbone": moments}, metrics

    def adapter_step(state: TrainState, frozen: Tree | None, batch: Tree, hyper: Tree) -> tuple[Tree, Tree, Metrics]:
        # A row without weight is not present: its task must not advance.
        task = jnp.where(batch["weight"] > 0, batch["task"], task_rows.NO_TASK)
        size = state.optimizer["tasks"]["count"].shape[0]
        ids, index = task_rows.active_rows(task, max_tasks, size)
        # An utterance whose task found no slot must not train the controller as if it were `__base__`.
        lost = (task < task_rows.NO_TASK) | (task >= size) | ((task >= 0) & (index >= max_tasks))
        batch = batch | {"weight": jnp.where(lost, 0.0, batch["weight"])}
        with jax.named_scope("gather_rows"):
            learned = {"rows": task_rows.gather(state.trainable["tasks"], ids)}
        if "shared" in state.trainable:
            learned["shared"] = state.trainable["shared"]
        fixed = state.fixed.get("shared")
        grads, metrics = gradients(learned, frozen, fixed, index, batch, hyper, state.step)
        good = _examined(grads, metrics, present=ids < size)
        with jax.named_scope("update_rows"):
            tasks, rows = update_rows(
                grads["rows"],
                # Of a step that is skipped, no row is written.
                jnp.where(good, ids, task_rows.NO_ROW),
                state=state.optimizer["tasks"],
                tasks=state.trainable["tasks"],
                step=state.step,
                config=config,
                peak=hyper["learning_rate"],
            )
        trainable, optimizer = {"tasks": tasks}, {"tasks": rows}
        if "shared" in learned:
            updated = _dense_update(config, "shared", grads["shared"], state, hyper["learning_rate"], good)
            trainable["shared"], optimizer["shared"] = updated
        metrics[LOST] = lost.sum().astype(jnp.float32)
        return trainable, optimizer, metrics

    return train_step


def _examined(grads: Tree, metrics: Metrics, *, present: jax.Array) -> jax.Array:
    """Whether the loss and the gradient of an adapter are finite, a bool scalar; `metrics` gets its norms.

    `present` `[K]` says which rows are of a task.
    """
    norms = jnp.where(present, row_norms(grads["rows"]), 0.0)
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norms).all()
    if "shared" in grads:
        metrics["controller_gradient_norm"] = global_norm(grads["shared"])
        good &= jnp.isfinite(metrics["controller_gradient_norm"])
    metrics["row_gradient_norm"] = norms.sum() / jnp.maximum(present.sum(), 1)
    metrics["tasks_present"] = present.sum().astype(jnp.float32)
    metrics[SKIPPED] = (~good).astype(jnp.float32)
    return good


def _dense_update(
    config: OptimizerConfig, part: str, grads: Tree, state: TrainState, peak: Scalar, good: jax.Array
) -> tuple[Tree, Any]:
    """The weights of `part`, which takes part in every step, after one update, and their moments.

    Without `good`, a bool scalar, both are what they were. The choice is made element by element as they are written,
    so a step needs no second copy of them.
    """
    with jax.named_scope(f"update_{part}"):
        moves, moments = dense(config, peak=peak).update(grads, state.optimizer[part], state.trainable[part])
        updated = optax.apply_updates(state.trainable[part], moves)
        before = (state.trainable[part], state.optimizer[part])
        chosen: tuple[Tree, Any] = jax.tree.map(lambda new, old: jnp.where(good, new, old), (updated, moments), before)
        return chosen


def make_host_rows_step(train_step: Callable[..., Any]) -> Callable[..., tuple[TrainState, Metrics, Tree]]:
    """Builds the step of a bank on the host: `step(state, frozen, batch, hyper, incoming, resident)`.

    The device holds K rows: those of the tasks of the step. Nothing in the program depends on the number of tasks. The
    step takes a state without the bank, `hyper` as the train step does, and
      incoming: {'ids': int32 `[K]` ascending, slots beyond the tasks of the batch hold `task_rows.NO_ROW`; 'rows':
        their rows as the host has them, `{'tasks', 'mu', 'nu', 'count'}`}.
      resident: the same, as the step before left it: where both have a row, this is the newer one, since the host
        copies a step's rows back while the next one runs.
    It returns (state, metrics, resident).

    Args:
      train_step: from `make_train_step`, with `max_tasks` K.
    """

    def step(
        state: TrainState, frozen: Tree | None, batch: Tree, hyper: Tree, incoming: Tree, resident: Tree
    ) -> tuple[TrainState, Metrics, Tree]:
        ids, rows = incoming["ids"], task_rows.newest(incoming, resident)
        slot = jnp.searchsorted(ids, batch["task"]).astype(jnp.int32)
        found = jnp.take(ids, slot, mode="clip") == batch["task"]
        # A task that did not come along is beyond the K rows, where the step counts it as lost.
        local = jnp.where(batch["task"] == task_rows.NO_TASK, task_rows.NO_TASK, jnp.where(found, slot, ids.shape[0]))
        state, metrics = train_step(train_state.with_bank(state, rows), frozen, batch | {"task": local}, hyper)
        return train_state.without_bank(state), metrics, {"ids": ids, "rows": train_state.bank_of(state)}

    return step


def make_evaluation_step(
    model: AsrModel, *, blank_id: int, beside: bool = True, log_probs: bool = False
) -> Callable[[Tree, Tree, Tree], Metrics]:
    """Builds `evaluation_step(trainable, frozen, batch)`.

    The batch's tasks are looked up in the bank of `trainable`.

    It returns a dict: 'paths' int32 `[B, T]` (best label per frame), 'lengths' int32 `[B]`, 'loss' float32 `[B]`;
    'utterance' and 'weight' as in the batch. With `beside` the same utterances also run without any adapter (for
    `full`: through `frozen`, which is then the untouched backbone), and there are 'base_paths' int32 `[B, T]` and
    'difference' float32 `[B]`: the largest absolute difference, in valid frames, of the log-probabilities from those
    without what the task owns. With `log_probs` there are 'log_probs' and, `beside`, 'base_log_probs', float32
    `[B, T, V]`, for a decoder.
    """

    def evaluation_step(trainable: Tree, frozen: Tree, batch: Tree) -> Metrics:
        if "backbone" in trainable:
            slots, index = 0, jnp.zeros_like(batch["task"])
            adapted, plain = (
                functools.partial(forward, model, part, None, None) for part in (trainable["backbone"], frozen)
            )
        else:
            size = jax.tree.leaves(trainable["tasks"])[0].shape[0]
            # One slot more than there can be tasks: nothing fills the last, so its row is zero.
            slots = batch["task"].shape[0] + 1
            ids, index = task_rows.active_rows(batch["task"], slots, size)
            rows = task_rows.gather(trainable["tasks"], ids)
            adapted = plain = functools.partial(forward, model, frozen, trainable["shared"], rows)
        found, lengths = adapted(index, batch)
        loss, _ = ctc.ctc_loss(found, lengths, batch["labels"], batch["label_lengths"], blank_id)
        outputs = {
            "paths": found.argmax(axis=-1).astype(jnp.int32),
            "lengths": lengths,
            "loss": loss,
            "utterance": batch["utterance"],
            "weight": batch["weight"],
        }
        outputs |= {LOG_PROBS: found.astype(jnp.float32)} if log_probs else {}
        if not beside:
            return outputs
        # The base writes in its own vocabulary.
        base, _ = plain(
            jnp.full_like(index, slots), {name: value for name, value in batch.items() if name != "symbols"}
        )
        without = base
        if "symbols" in batch:
            # In the task's own vocabulary and, where all tasks share an output layer, after that: a row that does
            # nothing makes no difference there either. A row of zeros does nothing, whatever the method.
            without, _ = plain(jnp.where(index < slots, slots - 1, index), batch)
        outputs |= {f"base_{LOG_PROBS}": base.astype(jnp.float32)} if log_probs else {}
        valid = jnp.arange(found.shape[1])[None, :] < lengths[:, None]
        difference = jnp.where(valid, jnp.abs(found - without).max(axis=-1), 0.0).max(axis=1)
        return outputs | {"base_paths": base.argmax(axis=-1).astype(jnp.int32), "difference": difference}

    return evaluation_step


def make_voice_step(model: AsrModel) -> Callable[[Tree, Tree, Tree], Metrics]:
    """Builds `voice_step(trainable, frozen, batch)`, which hears a batch without any task's own part.

    It returns a dict: 'voices' float32 `[B, 2 S]`, see `models.asr.apply_with_voice`; 'utterance' and 'weight' as in
    the batch.
    """

    def voice_step(trainable: Tree, frozen: Tree, batch: Tree) -> Metrics:
        rows = trainable["tasks"]
        count = jax.tree.leaves(rows)[0].shape[0]
        nothing = jnp.full_like(batch["task"], count)
        bound = bind(model.adapter, model.encoder, trainable["shared"], rows, nothing)
        _, _, voices = apply_with_voice(model, frozen, batch["waveform"], batch["num_samples"], bound)
        return {"voices": voices, "utterance": batch["utterance"], "weight": batch["weight"]}

    return voice_step
