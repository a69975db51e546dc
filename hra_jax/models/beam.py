"""CTC prefix beam search of a whole batch as one compiled scan over frames, with automata for language and phrases.

Every row has an automaton for its language model and one for its phrases, or none. All automata of a batch are one
table, padded to powers of two, and weights are arguments: other lists of phrases, other models of like size, other
weights and other tasks compile nothing.

Two prefixes are the same if 64 bits of hashes are: a frame compares the pairs of a beam, so that two different
prefixes are taken for one in about one of 2**64 / W**2 frames.

Letters: B batch, T frames, V vocabulary, W width of the beam, N hypotheses that are returned, K tokens of a frame that
are tried, S states, A arcs.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hra_jax.models.automaton_tables import NEVER, Arcs, Tables, locate
from hra_jax.models.automaton_tables import tables as tables  # what a search is given

ALL_TOKENS = 256  # vocabularies up to this size are searched without pruning
PRUNED_TOKENS = 32  # tokens of a frame that are tried in larger ones
_DEAD = -1e29  # below it, `NEVER` is in a score


class Weights(NamedTuple):
    """What is multiplied with the scores of a row, and what each token adds; float32 `[B]` each."""

    lm_weight: ArrayLike
    token_bonus: ArrayLike
    phrase_weight: ArrayLike


class Hypotheses(NamedTuple):
    """The N best prefixes of each row, best first.

    tokens: int32 `[B, N, T]`; -1 beyond the length.
    lengths: int32 `[B, N]`, tokens.
    scores: float32 `[B, N]`, with all that was added; -inf where there are fewer than N prefixes.
    ctc: float32 `[B, N]`, log of the sum over all alignments, without what was added.
    """

    tokens: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    scores: jax.Array | np.ndarray
    ctc: jax.Array | np.ndarray


class _Beam(NamedTuple):
    """The prefixes of a beam, `[B, W]` each."""

    in_blank: jax.Array  # float32, log-probability of the alignments that end in a blank
    in_token: jax.Array  # and of those that end in the last token
    added: jax.Array  # float32, what models, phrases and bonus gave
    last: jax.Array  # int32, the last token; -1: none
    hash: tuple[jax.Array, jax.Array]  # uint32
    parent: tuple[jax.Array, jax.Array]  # that of the prefix without its last token
    states: tuple[jax.Array, ...]  # int32, of each automaton


# --- The search -------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("width", "n_best", "frame_tokens"))
def search(
    log_probs: ArrayLike,
    lengths: ArrayLike,
    blank_id: ArrayLike,
    *,
    width: int,
    n_best: int = 1,
    frame_tokens: int = 0,
    model: Tables | Arcs | None = None,
    model_start: ArrayLike | None = None,
    phrases: Tables | Arcs | None = None,
    phrase_start: ArrayLike | None = None,
    weights: Weights | None = None,
) -> Hypotheses:
    """The prefixes with the highest scores.

    The score of a prefix is the log of the sum over its alignments + lm_weight * what the model gave + phrase_weight *
    what the phrases gave + token_bonus * its tokens. The search is the prefix beam search of Hannun et al., "First-Pass
    Large Vocabulary Continuous Speech Recognition using Bi-Directional Recurrent DNNs" (arXiv 1408.2873), without their
    threshold.

    Args:
      log_probs: `[B, T, V]`, taken to float32; -inf where a row lacks a token.
      lengths: int32 `[B]`, frames; what is beyond changes nothing.
      blank_id: id of the blank, or `[B]` where the rows have different ones.
      width: W, prefixes that are kept after each frame.
      n_best: N, at most `width`.
      frame_tokens: K, the most probable tokens of a frame that prefixes are extended by; 0: all of them where V is at
        most `ALL_TOKENS`, which makes the search that of its definition, else 32. A prefix always stays as it is, and
        is joined with itself, whatever its last token is.
      model: from `tables`.
      model_start: int32 `[B]`, the state that each row starts in; -1: the row has no model.
      phrases: likewise.
      phrase_start: likewise.
      weights: None: 0 for all.

    Returns:
      The hypotheses.
    """
    log_probs = jnp.maximum(jnp.asarray(log_probs, jnp.float32), NEVER)
    batch, frames, vocabulary = log_probs.shape
    blank = jnp.broadcast_to(jnp.asarray(blank_id, jnp.int32), batch)
    bonus, automata = _automata(
        batch, weights, (model, model_start, "lm_weight"), (phrases, phrase_start, "phrase_weight")
    )
    beam = _first_beam(batch, width, tuple(start for _, start, _ in automata))
    is_blank = jnp.arange(vocabulary, dtype=jnp.int32)[None, :] == blank[:, None]
    blank_scores = jnp.take_along_axis(log_probs, blank[:, None, None], axis=2)[..., 0]
    token_scores = jnp.where(is_blank[:, None, :], NEVER, log_probs)
    count = frame_tokens or (vocabulary if vocabulary <= ALL_TOKENS else PRUNED_TOKENS)
    if count < vocabulary:
        tried_scores, tried = jax.lax.top_k(token_scores, count)
    else:
        tried_scores = token_scores
        tried = jnp.broadcast_to(jnp.arange(vocabulary, dtype=jnp.int32)[None, None, :], token_scores.shape)

    def frame(beam: _Beam, given: tuple[jax.Array, ...]) -> tuple[_Beam, tuple[jax.Array, jax.Array]]:
        valid, *scores = given
        after, source, token = _advance(beam, *scores, bonus=bonus, automata=automata)
        valid = valid[:, None]
        beam = jax.tree.map(lambda new, old: jnp.where(valid, new, old), after, beam)
        slots = jnp.arange(width, dtype=jnp.int32)[None, :]
        return beam, (jnp.where(valid, source, slots), jnp.where(valid, token, -1))

    valid = jnp.arange(frames)[:, None] < jnp.asarray(lengths)[None, :]
    by_frame = (jnp.moveaxis(array, 1, 0) for array in (token_scores, blank_scores, tried_scores, tried))
    beam, (sources, tokens) = jax.lax.scan(frame, beam, (valid, *by_frame))
    ctc = _add(beam.in_blank, beam.in_token)
    scores = ctc + beam.added
    for (table, _, weight), states in zip(automata, beam.states, strict=True):
        scores += weight * table.final[states]
    scores, slots = jax.lax.top_k(scores, n_best)
    ctc = jnp.take_along_axis(ctc, slots, axis=1)
    alive = scores > _DEAD
    tokens, lengths = _trace_back(sources, tokens, slots, alive)
    return Hypotheses(tokens, lengths, jnp.where(alive, scores, -jnp.inf), jnp.where(alive, ctc, -jnp.inf))


def _automata(
    batch: int, weights: Weights | None, *given: tuple[Tables | Arcs | None, ArrayLike | None, str]
) -> tuple[jax.Array, list[tuple[Tables | Arcs, jax.Array, jax.Array]]]:
    """The bonus `[B, 1]`, and for each automaton its table, start states `[B]` and weights `[B, 1]`."""
    weights = weights or Weights(*[jnp.zeros(batch)] * 3)
    column = {name: jnp.asarray(value, jnp.float32)[:, None] for name, value in weights._asdict().items()}
    found = []
    for table, start, name in given:
        if table is not None:
            start = jnp.asarray(start, jnp.int32)
            found.append((table, jnp.maximum(start, 0), jnp.where(start[:, None] < 0, 0.0, column[name])))
    return column["token_bonus"], found


def _first_beam(batch: int, width: int, starts: tuple[jax.Array, ...]) -> _Beam:
    """The empty prefix, and nothing beside it."""
    never = jnp.full((batch, width), NEVER, jnp.float32)
    zero = jnp.zeros((batch, width), jnp.uint32)
    return _Beam(
        in_blank=never.at[:, 0].set(0.0),
        in_token=never,
        added=jnp.zeros((batch, width), jnp.float32),
        last=jnp.full((batch, width), -1, jnp.int32),
        hash=(zero, zero),
        parent=(zero, zero),
        states=tuple(jnp.broadcast_to(start[:, None], (batch, width)) for start in starts),
    )


def _advance(
    beam: _Beam,
    token_scores: jax.Array,
    blank_scores: jax.Array,
    tried_scores: jax.Array,
    tried: jax.Array,
    *,
    bonus: jax.Array,
    automata: Sequence[tuple[Tables | Arcs, jax.Array, jax.Array]],
) -> tuple[_Beam, jax.Array, jax.Array]:
    """The beam after one frame, and for each of its prefixes where it came from.

    Args:
      beam: before it.
      token_scores: `[B, V]`.
      blank_scores: `[B]`.
      tried_scores: `[B, K]`, of the tokens to extend by.
      tried: int32 `[B, K]`, those tokens.
      bonus: from `_automata`.
      automata: from there.

    Returns:
      The beam, the place of the prefix before it and the token that was appended (-1: none), int32 `[B, W]`.
    """
    width = beam.last.shape[1]
    both = _add(beam.in_blank, beam.in_token)
    last_scores = jnp.take_along_axis(token_scores, jnp.maximum(beam.last, 0), axis=1)
    # A prefix is reached in two ways only: from itself, and from its parent, if that is in the beam too.
    alive = (both + beam.added > _DEAD) & (beam.last >= 0)
    joins = alive[:, :, None]  # [B, W, W]: of a prefix and its parent
    for parent, own in zip(beam.parent, beam.hash, strict=True):
        joins &= parent[:, :, None] == own[:, None, :]
    # A token twice in a row needs a blank between.
    repeats = beam.last[:, :, None] == beam.last[:, None, :]
    from_parent = jnp.where(joins, jnp.where(repeats, beam.in_blank[:, None, :], both[:, None, :]), NEVER).max(axis=2)
    in_token = jnp.where(beam.last >= 0, _add(beam.in_token, from_parent) + last_scores, NEVER)
    in_blank = both + blank_scores[:, None]
    stays = _add(in_blank, in_token) + beam.added

    # By its child in the beam a prefix is not extended once more.
    is_child = jnp.einsum(
        "bij,bik->bjk", joins.astype(jnp.float32), (beam.last[:, :, None] == tried[:, None, :]).astype(jnp.float32)
    )
    before = jnp.where(beam.last[:, :, None] == tried[:, None, :], beam.in_blank[:, :, None], both[:, :, None])
    extended = before + tried_scores[:, None, :] + (beam.added + bonus)[:, :, None]
    looked_up = []
    for (table, _, weight), states in zip(automata, beam.states, strict=True):
        places, given = locate(table, states, tried)
        given = weight[:, :, None] * (given + table.scores.reshape(-1)[places])
        looked_up.append((table, places, given))
        extended += given
    extended = jnp.where((is_child > 0) | (tried_scores[:, None, :] <= _DEAD), NEVER, extended)

    candidates = jnp.concatenate([stays, extended.reshape(len(stays), -1)], axis=1)
    _, chosen = jax.lax.top_k(candidates, width)
    stay = chosen < width
    extension_chosen = jnp.maximum(chosen - width, 0)
    source, place = jnp.divmod(extension_chosen, tried.shape[1])
    source = jnp.where(stay, chosen, source)
    token = jnp.take_along_axis(tried, place, axis=1)

    def take(array: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array, source, axis=1)

    kept = jax.tree.map(take, beam._replace(in_blank=in_blank, in_token=in_token))
    start = jnp.where(kept.last == token, take(beam.in_blank), take(both))
    added, targets = kept.added + bonus, []
    for table, places, given in looked_up:
        places, given = (
            jnp.take_along_axis(array.reshape(len(array), -1), extension_chosen, axis=1) for array in (places, given)
        )
        added += given
        targets.append(table.targets.reshape(-1)[places])
    extension = _Beam(
        in_blank=jnp.full_like(start, NEVER),
        in_token=start + jnp.take_along_axis(tried_scores, place, axis=1),
        added=added,
        last=token,
        hash=_hash(kept.hash, token),
        parent=kept.hash,
        states=tuple(targets),
    )
    after = jax.tree.map(lambda old, new: jnp.where(stay, old, new), kept, extension)
    return after, source, jnp.where(stay, -1, token)


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(exp(a) + exp(b))."""
    return jnp.maximum(a, b) + jnp.log1p(jnp.exp(-jnp.abs(a - b)))


def _hash(hashes: tuple[jax.Array, jax.Array], token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hashes of prefixes with one more token: two of 32 bits, with the constants of xxHash and of MurmurHash3."""
    found = []
    for value, first, second in zip(hashes, (0x9E3779B1, 0xCC9E2D51), (0x85EBCA77, 0x1B873593), strict=True):
        value = (value ^ (token.astype(jnp.uint32) + 1)) * jnp.uint32(first)
        value = (value ^ (value >> 15)) * jnp.uint32(second)
        found.append(value ^ (value >> 13))
    return found[0], found[1]


def _trace_back(
    sources: jax.Array, tokens: jax.Array, slots: jax.Array, alive: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The tokens of prefixes and how many they are, from what `_advance` said in each frame, `[T, B, W]`.

    Args:
      sources: places in the beam before.
      tokens: those that were appended; -1: none.
      slots: places in the last beam, int32 `[B, N]`.
      alive: bool `[B, N]`; there are no tokens where False.
    """

    def back(slots: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        source, token = (jnp.take_along_axis(array, slots, axis=1) for array in given)
        return source, token

    _, appended = jax.lax.scan(back, slots, (sources, tokens), reverse=True)
    appended = jnp.where(alive[None], appended, -1)
    is_token = appended >= 0
    places = jnp.where(is_token, jnp.cumsum(is_token, axis=0) - 1, len(appended))
    rows, columns = jnp.indices(slots.shape, sparse=True)
    shape = (*slots.shape, len(appended))
    found = jnp.full(shape, -1, jnp.int32).at[rows[None], columns[None], places].set(appended, mode="drop")
    return found, is_token.sum(axis=0, dtype=jnp.int32)
