"""Batches whose rows have tasks, language models and phrases of their own; what each gets alone is what it gets."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from reference import beam_reference

from hra_jax.decoding import decoder as decoders
from hra_jax.decoding import phrases as phrase_lists
from hra_jax.decoding.decoder import Decoder
from hra_jax.decoding.language_models import Held
from hra_jax.decoding.settings import DEFAULT_WEIGHTS, decode_settings
from hra_jax.errors import UserError
from hra_jax.models import alignment, beam, ctc
from hra_jax.text import ngram
from hra_jax.text.published_vocabularies import CtcTokenVocabulary
from hra_jax.text.task_vocabularies import BlankFirst
from hra_jax.text.vocabularies import CharacterVocabulary

LETTERS = CharacterVocabulary(" abcdefg")
TASKS = tuple(f"task{number}" for number in range(8))
WORDS = ("abba", "cab", "dad", "feed", "gag", "bag", "deaf", "egg", "cafe", "face", "bad", "add")
FRAMES = 24
WEIGHTS = {"lm_weight": 0.8, "token_bonus": 1.0, "phrase_weight": 3.0}


def language_model(seed: int, vocabulary=LETTERS) -> ngram.LanguageModel:
    """Of two hundred texts that have a bias of their own."""
    rng = np.random.default_rng(seed)
    likely = rng.dirichlet(np.full(len(WORDS), 0.3))
    texts = [" ".join(rng.choice(WORDS, 3, p=likely)) for _ in range(200)]
    return ngram.train([vocabulary.encode(text) for text in texts], vocabulary, order=3, name=f"model {seed}")


def log_probs_of(*shape: int, seed: int = 0) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal(shape)
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


@pytest.fixture(scope="module")
def models():
    return {task: language_model(seed) for seed, task in enumerate(TASKS)}


@pytest.fixture(scope="module")
def decoder(models):
    return Decoder(
        decode_settings({"lm": models, "beam": 8, "n_best": 3, "phrases": {TASKS[0]: ["egg"]}} | WEIGHTS),
        vocabularies=dict.fromkeys(TASKS, LETTERS),
    )


LOG_PROBS = log_probs_of(8, FRAMES, LETTERS.size)
LENGTHS = np.array([24, 9, 24, 1, 17, 0, 24, 20])
PHRASES = [["dad"], ["cab", "bag"], [], ["feed"], [("abba", 2.0)], ["gag"], ["add", "egg", "face"], ["bad"]]


def assert_same(found, row, alone):
    np.testing.assert_array_equal(found.paths[row], alone.paths[0])
    assert found.scores[row] == pytest.approx(alone.scores[0], abs=1e-4)
    assert [a.text for a in found.alternatives[row]] == [a.text for a in alone.alternatives[0]]


def test_eight_tasks_with_models_and_phrases_of_their_own_get_what_each_gets_alone(decoder, models):
    found = decoder.paths(LOG_PROBS, LENGTHS, TASKS, phrases=PHRASES)
    for row, task in enumerate(TASKS):
        alone = decoder.paths(LOG_PROBS[row : row + 1], LENGTHS[row : row + 1], [task], phrases=[PHRASES[row]])
        assert_same(found, row, alone)
        text = LETTERS.decode(ctc.labels_of_path(found.paths[row], 0))
        assert text == found.alternatives[row][0].text and len(found.paths[row]) == LENGTHS[row]
    # Each model and each list acts: with another row's, something else is found.
    others = decoder.paths(LOG_PROBS, LENGTHS, TASKS[::-1], phrases=PHRASES)
    elsewhere = decoder.paths(LOG_PROBS, LENGTHS, TASKS, phrases=PHRASES[::-1])
    for other in (others, elsewhere):
        assert any(abs(a - b) > 0.1 for a, b in zip(found.scores, other.scores, strict=True))


def test_a_row_gets_what_a_plain_search_with_its_model_phrases_and_weights_gives(decoder, models):
    row, task = 0, TASKS[0]
    found = decoder.paths(LOG_PROBS, LENGTHS, TASKS, phrases=PHRASES)
    model = models[task].automaton
    phrases = phrase_lists.automaton_of(["egg", *PHRASES[row]], LETTERS)

    def score(prefix):
        return 0.8 * (model.score(prefix) - end(prefix)[0]) + 3.0 * (phrases.score(prefix) - end(prefix)[1])

    def end(prefix):
        states = [model.start, phrases.start]
        for token in prefix:
            states = [a.step(s, token)[1] for a, s in zip((model, phrases), states, strict=True)]
        return float(model.final[states[0]]), float(phrases.final[states[1]])

    def extend(prefix, token):
        return 1.0 + score((*prefix, token)) - score(prefix)

    expected = beam_reference.prefix_beam(
        LOG_PROBS[row].tolist(),
        blank=0,
        width=8,
        extend=extend,
        end=lambda prefix: 0.8 * end(prefix)[0] + 3.0 * end(prefix)[1],
    )
    assert found.scores[row] == pytest.approx(expected[0][0], abs=1e-3)
    assert ctc.labels_of_path(found.paths[row], 0) == list(expected[0][1])


def test_other_phrases_tasks_weights_and_models_compile_nothing(decoder, models):
    decoder.paths(LOG_PROBS, LENGTHS, TASKS, phrases=PHRASES)
    programs = beam.search._cache_size(), alignment.viterbi._cache_size()
    decoder.paths(LOG_PROBS, LENGTHS, TASKS, phrases=[["face", "cafe"], ["deaf"], *PHRASES[2:]])
    decoder.paths(LOG_PROBS, LENGTHS, TASKS[::-1], phrases=[["feed"]] * 8)
    settings = dataclasses.replace(decoder.settings, lm_weight=0.3, token_bonus=0.5, phrase_weight=1.5)
    Decoder(settings, vocabularies=dict.fromkeys(TASKS, LETTERS)).paths(LOG_PROBS, LENGTHS, TASKS)
    other = decode_settings({"lm": language_model(20), "beam": 8, "n_best": 3, "phrases": ["cafe"]})
    Decoder(other, vocabularies=dict.fromkeys(TASKS, LETTERS)).paths(LOG_PROBS, LENGTHS, TASKS)
    assert (beam.search._cache_size(), alignment.viterbi._cache_size()) == programs


def test_the_table_of_models_stays_on_the_device_and_a_list_that_was_seen_is_not_made_again(
    decoder, models, monkeypatch
):
    decoder.paths(LOG_PROBS, LENGTHS, TASKS, phrases=PHRASES)
    monkeypatch.setattr(beam, "tables", None)  # nothing is put together again
    monkeypatch.setattr(phrase_lists, "automaton_of", None)
    decoder.paths(LOG_PROBS + 0.0, LENGTHS, TASKS, phrases=PHRASES)
    # Nor for other tasks, as long as the arcs of all models are few.
    arcs = sum(model.automaton.sparse_bytes for model in models.values())
    assert arcs < sum(model.automaton.dense_bytes for model in models.values())
    monkeypatch.setattr(decoders, "_ONE_TABLE_BYTES", arcs)
    decoder.paths(LOG_PROBS, LENGTHS, TASKS[1:5] * 2)
    # Nor for other weights, of which tuning tries many.
    settings = dataclasses.replace(decoder.settings, lm_weight=0.3, phrase_weight=1.5)
    other = Decoder(settings, vocabularies=dict.fromkeys(TASKS, LETTERS), like=decoder)
    other.paths(LOG_PROBS, LENGTHS, TASKS, phrases=PHRASES)


def test_tasks_are_searched_with_the_beams_that_were_tuned_for_their_models_and_get_what_each_gets_alone(models):
    """Beams of 2 and 8: beside a row with another one, and beside greedy ones, a row gets what its own beam gives."""
    narrow, wide, plain = TASKS[:3]
    chosen = {narrow: models[narrow], wide: models[wide], plain: ""}
    stored = {
        task: {"lm": {"name": "x", "digest": models[task].digest}, "beam": width} | WEIGHTS
        for task, width in ((narrow, 2), (wide, 8))
    }
    settings, vocabularies = decode_settings({"lm": chosen}), dict.fromkeys(chosen, LETTERS)
    decoder = Decoder(settings, vocabularies=vocabularies, adapter=Held(stored, {}, "ADAPTER"))
    assert decoder.facts()["beam"] == {narrow: 2, wide: 8}
    tasks = [narrow, wide, plain, narrow, wide, narrow, wide, narrow]
    found = decoder.paths(LOG_PROBS, LENGTHS, tasks, rivals=3)
    assert [len(rivals) for rivals in found.rivals] == [2, 3, 0, 2, 3, 1, 3, 2]  # row 5 has no frames
    greedy = Decoder(vocabularies=vocabularies).paths(LOG_PROBS, LENGTHS, tasks)
    np.testing.assert_array_equal(found.paths[2], greedy.paths[2])
    for width, task in ((2, narrow), (8, wide)):
        given = decode_settings(
            {"lm": models[task], "beam": width} | {n: WEIGHTS[n] for n in ("lm_weight", "token_bonus")}
        )
        alone = Decoder(given, vocabularies={task: LETTERS}).paths(LOG_PROBS, LENGTHS, [task] * 8, rivals=3)
        for row in (at for at, name in enumerate(tasks) if name == task):
            np.testing.assert_array_equal(found.paths[row], alone.paths[row])
            assert found.scores[row] == pytest.approx(alone.scores[row], abs=1e-4)
            assert [one.text for one in found.rivals[row]] == [one.text for one in alone.rivals[row]]
    # The width acts, and is part of what decodes.
    same = {task: entry | {"beam": 8} for task, entry in stored.items()}
    wider = Decoder(settings, vocabularies=vocabularies, adapter=Held(same, {}, "ADAPTER"))
    assert wider.facts()["beam"] == {narrow: 8, wide: 8} and wider.digest != decoder.digest


def test_rows_without_a_model_and_without_phrases_are_decoded_greedily_beside_others(models):
    some = decode_settings({"lm": {TASKS[0]: models[TASKS[0]], TASKS[1]: ""}})
    decoder = Decoder(some, vocabularies=dict.fromkeys(TASKS[:2], LETTERS))
    tasks = [TASKS[0], TASKS[1]] * 4
    found = decoder.paths(LOG_PROBS, LENGTHS, tasks, phrases=[[], []] * 3 + [[], ["egg"]])
    greedy = Decoder(vocabularies={TASKS[1]: LETTERS}).paths(LOG_PROBS, LENGTHS, [TASKS[1]] * 8)
    for row in (1, 3, 5):
        np.testing.assert_array_equal(found.paths[row], greedy.paths[row])
        assert found.alternatives[row] == ()
    assert found.alternatives[7] and found.alternatives[0]
    facts = decoder.facts()
    assert facts["method"] == {TASKS[0]: "beam", TASKS[1]: "greedy"}
    assert facts["lm"] == {TASKS[0]: {"name": "model 0", "digest": models[TASKS[0]].digest}}


def test_nothing_given_is_the_likeliest_label_of_each_frame_bit_for_bit():
    decoder = Decoder(vocabularies=dict.fromkeys(TASKS, LETTERS))
    for given in (LOG_PROBS, jnp.asarray(LOG_PROBS)):
        found = decoder.paths(given, LENGTHS, TASKS)
        for row, length in enumerate(LENGTHS):
            np.testing.assert_array_equal(found.paths[row], LOG_PROBS[row].argmax(axis=-1)[:length])
    assert decoder.facts() == {"method": "greedy"}


def test_a_vocabulary_whose_blank_was_moved_in_the_batch_is_searched_in_its_own_order():
    tokens = [*"abcd", "|", "<pad>", *"efg"]
    own = CtcTokenVocabulary(
        tokens=tokens, blank_id=5, special_ids=[5], word_delimiter="|", space=" ", lower=False, clean=False
    )
    moved, model = BlankFirst(own), language_model(3, own)
    order = [own.blank_id, *(i for i in range(own.size) if i != own.blank_id)]
    settings = decode_settings({"lm": model, "phrases": ["egg"], "beam": 8})
    log_probs = log_probs_of(2, FRAMES, own.size, seed=5)
    plain = Decoder(settings, vocabularies={"a": own}).paths(log_probs, [24, 11], ["a", "a"])
    found = Decoder(settings, vocabularies={"a": moved}).paths(log_probs[:, :, order], [24, 11], ["a", "a"])
    for row in range(2):
        np.testing.assert_array_equal(np.array(order)[found.paths[row]], plain.paths[row])
        assert found.alternatives[row] == plain.alternatives[row]


def test_vocabularies_of_several_sizes_share_a_batch(models):
    few = CharacterVocabulary(" abcd")
    lm = ngram.train([few.encode("cab dad"), few.encode("bad cab")], few, order=3, name="few")
    settings = decode_settings({"lm": {"many": models[TASKS[0]], "few": lm}, "phrases": {"few": ["dad"]}, "beam": 8})
    decoder = Decoder(settings, vocabularies={"many": LETTERS, "few": few})
    log_probs = LOG_PROBS[:2].copy()
    small = log_probs_of(1, FRAMES, few.size, seed=4)
    log_probs[1, :, : few.size] = small
    log_probs[1, :, few.size :] = -np.inf  # what a vocabulary does not have is impossible
    found = decoder.paths(log_probs, [24, 20], ["many", "few"])
    assert_same(found, 0, decoder.paths(log_probs[:1], [24], ["many"]))
    assert_same(found, 1, decoder.paths(small, [20], ["few"]))
    assert found.alternatives[1][0].text == few.decode(ctc.labels_of_path(found.paths[1], 0))


# --- Models and weights -----------------------------------------------------------------------------------------------


def refusal(given, vocabularies, **more) -> str:
    with pytest.raises(UserError) as caught:
        Decoder(decode_settings(given), vocabularies=vocabularies, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_decode_is_refused_in_one_line_before_anything_is_loaded(models, tmp_path):
    one = {"a": LETTERS}
    other = {"a": LETTERS, "b": CharacterVocabulary(" abcdefgh")}
    model = models[TASKS[0]]
    ngram.write(tmp_path / "x.lm", model)
    (tmp_path / "bad.lm").write_bytes(b"no model")
    assert "decode.lm, task 'b': model 0: a language model of the vocabulary" in refusal({"lm": model}, other)
    assert f"task 'b': {tmp_path / 'x.lm'}" in refusal({"lm": tmp_path / "x.lm"}, other)
    assert "no language model for task 'b', but for 'a'" in refusal({"lm": {"a": model}}, other)
    assert "none.lm is not a file" in refusal({"lm": "none.lm"}, one)
    assert "bad.lm" in refusal({"lm": tmp_path / "bad.lm"}, one)
    assert "'train': there is no run here" in refusal({"lm": "train"}, one)
    assert "'adapter': the backbone alone holds no language model for task 'a'" in refusal({"lm": "adapter"}, one)
    assert "'xyz'" in refusal({"phrases": ["xyz"]}, one)
    assert "empty phrase" in refusal({"phrases": {"a": [" "]}}, one)
    assert "phrases themselves are a tuple, ('new york',)" in refusal({"phrases": "new york"}, one)
    with pytest.raises(UserError, match="xyz"):
        Decoder(vocabularies=one).paths(LOG_PROBS[:1], LENGTHS[:1], ["a"], phrases=[["xyz"]])
    with pytest.raises(UserError, match="a decoder of the tasks 'a' has none for 'b'"):
        Decoder(vocabularies=one).check_phrases("b", ())


def test_the_model_of_a_file_is_read_again_where_it_was_written_again_and_else_once(models, tmp_path):
    first, second = models[TASKS[0]], models[TASKS[1]]
    ngram.write(tmp_path / "x.lm", first)

    def decoder():
        return Decoder(decode_settings({"lm": tmp_path / "x.lm"}), vocabularies={"a": LETTERS})

    one, other = decoder(), decoder()
    assert one._tasks["a"].model is other._tasks["a"].model and one.facts()["lm"]["digest"] == first.digest
    ngram.write(tmp_path / "x.lm", second)
    assert decoder().facts()["lm"]["digest"] == second.digest


def test_the_adapter_gives_the_model_of_a_task_or_of_all_and_its_name_where_it_is_elsewhere(models):
    mine, shared = models[TASKS[0]], models[TASKS[1]]
    records = {
        "lm": {name: np.frombuffer(ngram.to_bytes(model), np.uint8) for name, model in (("a", mine), ("", shared))}
    }
    both = {"a": LETTERS, "b": LETTERS}
    held = Held({}, records, "ADAPTER")
    decoder = Decoder(decode_settings({"lm": "adapter"}), vocabularies=both, adapter=held)
    digests = {task: facts["digest"] for task, facts in decoder.facts()["lm"].items()}
    assert digests == {"a": mine.digest, "b": shared.digest}
    tuned = {"b": {"lm": {"name": "dialogues", "digest": shared.digest}}}
    message = refusal({"lm": "adapter"}, both, adapter=Held(tuned, {"lm": {"a": records["lm"]["a"]}}, "ADAPTER"))
    assert "ADAPTER holds no language model for task 'b'" in message
    assert f"tuned with 'dialogues' ({shared.digest[:12]})" in message and "export --with-lm" in message


def test_tuned_weights_are_those_of_the_model_that_they_were_tuned_for(models):
    mine, other = models[TASKS[0]], models[TASKS[1]]
    lm = {"name": "x", "digest": mine.digest}
    stored = {"lm": lm, "beam": 32, "lm_weight": 1.5, "token_bonus": 2, "phrase_weight": 4.0}
    held = Held({"a": stored}, {}, "ADAPTER")

    def weights(given, **more):
        facts = Decoder(decode_settings(given), vocabularies={"a": LETTERS}, adapter=held, **more).facts()
        return [facts.get(name) for name in ("lm_weight", "token_bonus", "phrase_weight")]

    def beam_of(given):
        found = Decoder(decode_settings(given), vocabularies={"a": LETTERS}, adapter=held)
        return found.facts(phrases=True)["beam"]

    assert [beam_of({"lm": mine}), beam_of({"lm": mine, "beam": 5}), beam_of({"lm": mine, "n_best": 40})] == [32, 5, 40]
    assert beam_of({"lm": other}) == beam_of({}) == 16  # another model, or none
    assert weights({"lm": mine}) == [1.5, 2.0, None]
    assert weights({"lm": mine, "lm_weight": 0.25, "phrases": ["egg"]}) == [0.25, 2.0, 4.0]
    assert weights({"lm": "train"}, train=lambda task: mine) == [1.5, 2.0, None]
    lm_weight, bonus, phrase_weight = DEFAULT_WEIGHTS.values()
    assert weights({"lm": other, "phrases": ["egg"]}) == [lm_weight, bonus, phrase_weight]
    assert weights({"phrases": ["egg"]}) == [None, 0.0, phrase_weight]
    # What all tasks have in common is that of a new one and of their mean too; of what differs, nothing is.
    for tuned, weight in (({"b": stored, "c": stored}, 1.5), ({"b": stored, "c": {**stored, "beam": 8}}, 0.8)):
        held = Held(tuned, {}, "ADAPTER")
        assert weights({"lm": mine})[0] == weight
    # Of a decoder that is greedy, what decodes an utterance that brings phrases.
    greedy = Decoder(decode_settings({"phrase_weight": 2.5}), vocabularies={"a": LETTERS})
    assert greedy.facts() == {"method": "greedy"}
    assert greedy.facts(phrases=True)["phrase_weight"] == 2.5
    message = refusal({"lm": mine}, {"a": LETTERS}, adapter=Held({"a": stored | {"lm_weight": "much"}}, {}, "ADAPTER"))
    assert "tasks.json, task 'a', decode: decode.lm_weight = 'much'" in message
    for wrong in (-1, 8.5, 5000, True, "8"):
        message = refusal({"lm": mine}, {"a": LETTERS}, adapter=Held({"a": stored | {"beam": wrong}}, {}, "ADAPTER"))
        assert f"tasks.json, task 'a', decode: decode.beam = {wrong!r}" in message
