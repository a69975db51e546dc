"""The search against a sum over all paths, a plain prefix beam search and fast-ctc-decode; any batch and padding."""

import functools
import json
import os
from pathlib import Path

import fast_ctc_decode
import numpy as np
import pytest
import soundfile
from reference import beam_reference
from reference.automata import from_contexts

from hra_jax import api
from hra_jax.data.synthetic.rendering import render
from hra_jax.evaluation import error_rates
from hra_jax.models import beam, ctc
from hra_jax.text import ngram
from hra_jax.text.automaton import Automaton

BATCH, FRAMES, TOKENS, WIDTH = 8, 4, 4, 128  # WIDTH is more than there are prefixes of 3 tokens in 4 frames


def random_log_probs(*shape: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    logits = scale * np.random.default_rng(seed).standard_normal(shape)
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def random_automaton(seed: int, vocabulary: int, contexts: int = 12) -> Automaton:
    """Contexts of up to three tokens, with random scores, back-off scores and scores at the end."""
    rng = np.random.default_rng(seed)
    found = {tuple(rng.integers(0, vocabulary, rng.integers(1, 4)).tolist()) for _ in range(contexts)} | {()}
    arcs = {
        context: {
            int(token): float(rng.normal())
            for token in rng.choice(vocabulary, rng.integers(1, vocabulary), replace=False)
        }
        for context in sorted(found)
    }
    scores = {
        name: {context: float(rng.normal()) for context in arcs if context} for name in ("backoff_scores", "final")
    }
    return from_contexts(arcs, missing=rng.normal(size=vocabulary), **scores)


def added_by(*automata: tuple[Automaton | None, float], bonus: float) -> dict:
    """The `extend` and `end` of the references: weighted automata, and a bonus for each token."""
    given = [(automaton, weight) for automaton, weight in automata if automaton is not None]

    def state(automaton, prefix):
        found = automaton.start
        for token in prefix:
            found = automaton.step(found, token)[1]
        return found

    def extend(prefix, token):
        return bonus + sum(weight * a.step(state(a, prefix), token)[0] for a, weight in given)

    def end(prefix):
        return sum(weight * float(a.final[state(a, prefix)]) for a, weight in given)

    return {"extend": extend, "end": end}


def weights_of(batch: int, seed: int = 0) -> beam.Weights:
    rng = np.random.default_rng(seed)
    return beam.Weights(*(rng.uniform(0.2, 1.5, batch).astype(np.float32) for _ in range(3)))


def with_automata(models: list[Automaton | None], phrases: list[Automaton | None], vocabulary: int, **options) -> dict:
    """Arguments of `search` for rows with these automata, None where a row has none."""
    given = {}
    for name, start, automata in (("model", "model_start", models), ("phrases", "phrase_start", phrases)):
        present = [row for row, automaton in enumerate(automata) if automaton is not None]
        table, starts = beam.tables([automata[row] for row in present], vocabulary_size=vocabulary, **options)
        given[name] = table
        given[start] = np.full(len(automata), -1, np.int32)
        given[start][present] = starts
    return given


def texts(found: beam.Hypotheses, row: int) -> list[tuple[int, ...]]:
    tokens, lengths, scores = (np.asarray(array[row]) for array in found[:3])
    return [tuple(tokens[i, : lengths[i]].tolist()) for i in range(len(lengths)) if np.isfinite(scores[i])]


def assert_same(found: beam.Hypotheses, row: int, expected: list[tuple[float, tuple[int, ...]]]) -> None:
    """The scores in order, and the prefixes wherever their neighbours' scores differ by more than 1e-4."""
    scores = np.asarray(found.scores[row])
    count = min(np.isfinite(scores).sum(), len(expected))
    assert count == min(len(scores), sum(np.isfinite(score) for score, _ in expected))
    np.testing.assert_allclose(scores[:count], [score for score, _ in expected[:count]], atol=1e-4)
    padded = [np.inf, *(score for score, _ in expected), -np.inf]
    for place, prefix in enumerate(texts(found, row)):
        if min(padded[place] - padded[place + 1], padded[place + 1] - padded[place + 2]) > 1e-4:
            assert prefix == expected[place][1]


LENGTHS = np.array([4, 3, 4, 1, 2, 4, 0, 4], np.int32)
BLANKS = np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32)


@pytest.mark.parametrize("scale", [2.0, 6.0])
def test_it_finds_what_the_sum_over_every_path_finds(scale):
    log_probs = random_log_probs(BATCH, FRAMES, TOKENS, scale=scale)
    found = beam.search(log_probs, LENGTHS, BLANKS, width=WIDTH, n_best=20)
    for row in range(BATCH):
        rows = log_probs[row, : LENGTHS[row]].astype(float).tolist()
        expected = beam_reference.exhaustive(rows, blank=int(BLANKS[row])) if rows else [(0.0, ())]
        assert_same(found, row, expected)
        np.testing.assert_array_equal(found.ctc[row], found.scores[row])


@pytest.mark.parametrize("seed", [0, 1])
def test_with_models_phrases_and_a_bonus_it_finds_what_the_sum_over_every_path_finds(seed):
    log_probs = random_log_probs(BATCH, FRAMES, TOKENS, seed=seed)
    models = [random_automaton(10 * seed + row, TOKENS) if row % 3 else None for row in range(BATCH)]
    phrases = [random_automaton(100 + 10 * seed + row, TOKENS, 3) if row % 2 else None for row in range(BATCH)]
    weights = weights_of(BATCH, seed)
    given = with_automata(models, phrases, TOKENS)
    found = beam.search(log_probs, LENGTHS, BLANKS, width=WIDTH, n_best=20, weights=weights, **given)
    for row in range(BATCH):
        lm_weight, bonus, phrase_weight = (float(weight[row]) for weight in weights)
        added = added_by((models[row], lm_weight), (phrases[row], phrase_weight), bonus=bonus)
        rows = log_probs[row, : LENGTHS[row]].astype(float).tolist()
        blank = int(BLANKS[row])
        expected = beam_reference.exhaustive(rows, blank=blank, **added) if rows else [(added["end"](()), ())]
        assert_same(found, row, expected)
        totals = (
            {prefix: score for score, prefix in beam_reference.exhaustive(rows, blank=blank)} if rows else {(): 0.0}
        )
        np.testing.assert_allclose(found.ctc[row, 0], totals[texts(found, row)[0]], atol=1e-4)


# --- Longer utterances against plain searches of the same width -------------------------------------------------------

ROWS, LONG, LETTERS, BEAM = 4, 40, 12, 8


def spoken_log_probs(seed: int = 0, *, rows: int = ROWS, frames: int = LONG, letters: int = LETTERS) -> np.ndarray:
    """Log-probabilities like those of speech: runs of frames of one letter or of blanks, with doubts."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((rows, frames, letters))
    for row in range(rows):
        path = np.repeat(rng.integers(0, letters, frames), rng.integers(1, 4, frames))[:frames]
        path[rng.random(frames) < 0.5] = 0
        logits[row, np.arange(frames), path] += 5.0
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def spoken_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list, list, beam.Weights]:
    models = [random_automaton(seed + row, LETTERS, 40) if row != 1 else None for row in range(ROWS)]
    phrases = [random_automaton(seed + 50 + row, LETTERS, 4) if row != 2 else None for row in range(ROWS)]
    return spoken_log_probs(seed), np.array([40, 25, 37, 8], np.int32), models, phrases, weights_of(ROWS, seed)


def test_it_is_the_plain_search_of_the_same_width():
    log_probs, lengths, models, phrases, weights = spoken_case()
    given = with_automata(models, phrases, LETTERS)
    found = beam.search(log_probs, lengths, 0, width=BEAM, n_best=BEAM, weights=weights, **given)
    for row in range(ROWS):
        lm_weight, bonus, phrase_weight = (float(weight[row]) for weight in weights)
        added = added_by((models[row], lm_weight), (phrases[row], phrase_weight), bonus=bonus)
        rows = log_probs[row, : lengths[row]].astype(float).tolist()
        assert_same(found, row, beam_reference.prefix_beam(rows, blank=0, width=BEAM, **added))


def test_without_a_model_it_is_that_of_fast_ctc_decode():
    log_probs = spoken_log_probs(3)
    found = beam.search(log_probs, np.full(ROWS, LONG, np.int32), 0, width=BEAM)
    alphabet = "".join(chr(ord("a") + token) for token in range(LETTERS))
    for row in range(ROWS):
        text, _ = fast_ctc_decode.beam_search(np.exp(log_probs[row]), alphabet, beam_size=BEAM, beam_cut_threshold=0.0)
        assert texts(found, row)[0] == tuple(ord(letter) - ord("a") for letter in text)


def test_alone_in_a_batch_and_padded_is_the_same():
    log_probs, lengths, models, phrases, weights = spoken_case()
    given = with_automata(models, phrases, LETTERS)
    together = beam.search(log_probs, lengths, 0, width=BEAM, n_best=3, weights=weights, **given)
    wider = np.full((ROWS + 3, LONG + 9, LETTERS + 2), -np.inf, np.float32)
    wider[:ROWS, :LONG, :LETTERS] = log_probs
    wider[:, LONG:] = np.nan
    padded = beam.search(
        wider,
        np.concatenate([lengths, [0, 5, 49]]).astype(np.int32),
        0,
        width=BEAM,
        n_best=3,
        weights=beam.Weights(*(np.resize(weight, ROWS + 3) for weight in weights)),
        **with_automata([*models, None, None, None], [*phrases, None, None, None], LETTERS + 2),
    )
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = (
            beam.search(
                log_probs[one, : lengths[row]],
                lengths[one],
                0,
                width=BEAM,
                n_best=3,
                weights=beam.Weights(*(weight[one] for weight in weights)),
                **with_automata(models[one], phrases[one], LETTERS),
            )
            if row == 3
            else None
        )
        for other, place in ((padded, row), (alone, 0)):
            if other is not None:
                assert texts(other, place) == texts(together, row)
                np.testing.assert_allclose(other.scores[place], together.scores[row], atol=1e-4)
    assert not any(np.isnan(np.asarray(array)).any() for array in padded)


def test_other_lists_models_weights_and_tasks_compile_nothing():
    log_probs, lengths, models, phrases, weights = spoken_case()
    given = with_automata(models, phrases, LETTERS)
    beam.search(log_probs, lengths, 0, width=BEAM, n_best=3, weights=weights, **given)
    before = beam.search._cache_size()
    others = with_automata(
        [random_automaton(row + 7, LETTERS, 90 + 10 * row) for row in range(ROWS)],
        [random_automaton(row + 9, LETTERS, 1 + row) if row else None for row in range(ROWS)],
        LETTERS,
    )
    changed = beam.search(log_probs, lengths, 0, width=BEAM, n_best=3, weights=weights_of(ROWS, 5), **others)
    assert beam.search._cache_size() == before
    assert texts(changed, 0) != texts(
        beam.search(log_probs, lengths, 0, width=BEAM, n_best=3, weights=weights, **given), 0
    )


def test_pruned_tokens_that_matter_little_change_nothing():
    log_probs, lengths, models, phrases, weights = spoken_case()
    given = with_automata(models, phrases, LETTERS) | {"width": BEAM, "weights": weights}
    every = beam.search(log_probs, lengths, 0, **given)
    pruned = beam.search(log_probs, lengths, 0, frame_tokens=LETTERS - 2, **given)
    assert [texts(pruned, row) for row in range(ROWS)] == [texts(every, row) for row in range(ROWS)]
    np.testing.assert_allclose(pruned.scores, every.scores, atol=0.05)


def test_arcs_are_what_dense_tables_are():
    log_probs, lengths, _, _, weights = spoken_case()
    models = [random_automaton(row, LETTERS, 40 + 20 * row) if row != 1 else None for row in range(ROWS)]
    phrases = [random_automaton(50 + row, LETTERS, 4) for row in range(ROWS)]
    found = [
        beam.search(
            log_probs,
            lengths,
            0,
            width=BEAM,
            n_best=3,
            weights=weights,
            **with_automata(models, phrases, LETTERS, dense=dense),
        )
        for dense in (True, False)
    ]
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    np.testing.assert_allclose(found[0].scores, found[1].scores, atol=1e-4)


# --- Speech -----------------------------------------------------------------------------------------------------------


def speech(folder: Path, run: str | None) -> tuple[list, list[str], ngram.LanguageModel]:
    """Log-probabilities and texts of test utterances, and a model of the texts of the training set beside them."""
    data = Path(json.loads((Path(run) / "config.json").read_text())["data"]["dir"]) if run else folder
    backbone = api.load_backbone("builtin:tiny")
    model = api.load_adapter(Path(run) / "adapter", backbone) if run else None
    splits = ("test", "train")
    rows, train = ([json.loads(line) for line in (data / f"{name}.jsonl").open()] for name in splits)
    rows.sort(key=lambda row: row["duration"])
    found = []
    for begin in range(0, len(rows), 16):
        part = rows[begin : begin + 16]
        waveforms = [soundfile.read(data / row["audio_filepath"], dtype="float32") for row in part]
        given = {"sample_rate": waveforms[0][1]}
        if model:
            given["tasks"] = [row["speaker"] for row in part]
        log_probs, lengths = (model or backbone).log_probs([waveform for waveform, _ in waveforms], **given)
        found.append((log_probs, lengths))
    texts_of_training = [backbone.vocabulary.encode(row["text"]) for row in train]
    return found, [row["text"] for row in rows], ngram.train(texts_of_training, backbone.vocabulary)


@pytest.mark.slow(minutes=0.7)
@pytest.mark.optimised
def test_every_utterance_is_recognised_as_by_the_plain_search(tmp_path):
    """Rendered speech, or that of the run of the quickstart in the folder that HRA_QUICKSTART names."""
    run = os.environ.get("HRA_QUICKSTART")
    folder = tmp_path if run else render("hard", tmp_path / "hard", scale=0.1, progress=False)
    batches, said, model = speech(folder, run)
    automaton, vocabulary = model.automaton, api.load_backbone("builtin:tiny").vocabulary
    table, (start,) = beam.tables([automaton], vocabulary_size=vocabulary.size)

    @functools.cache
    def state(prefix):
        return automaton.step(state(prefix[:-1]), prefix[-1])[1] if prefix else automaton.start

    @functools.cache
    def extend(prefix, token):
        return 1.0 + 0.8 * automaton.step(state(prefix), token)[0]

    added = {"extend": extend, "end": lambda prefix: 0.8 * float(automaton.final[state(prefix)])}
    recognised, greedy = [], []
    for log_probs, lengths in batches:
        rows = len(lengths)
        weights = beam.Weights(*(np.full(rows, value, np.float32) for value in (0.8, 1.0, 0.0)))
        given = {"model": table, "model_start": np.full(rows, start), "weights": weights}
        found = beam.search(log_probs, lengths, vocabulary.blank_id, width=16, n_best=2, **given)
        for row in range(rows):
            plain = log_probs[row, : lengths[row]].astype(float).tolist()
            expected = beam_reference.prefix_beam(plain, blank=vocabulary.blank_id, width=16, **added)
            assert_same(found, row, expected[:3])
            recognised.append(texts(found, row)[0])
        greedy += ctc.greedy_decode(log_probs, lengths, vocabulary.blank_id)
    rates = []
    for decoded in (recognised, greedy):
        pairs = zip(said, (vocabulary.decode(list(tokens)) for tokens in decoded), strict=True)
        counts = [error_rates.word_errors(*pair, normalizer="basic") for pair in pairs]
        rates.append(sum(count.errors for count in counts) / sum(count.words for count in counts))
    assert rates[0] < 0.8 * rates[1], rates
