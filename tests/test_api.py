"""Recognition from Python: lists of waveforms of any length, each through the adapter of its task."""

import dataclasses
import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soxr
from reference import micro as world

import hra_jax
from hra_jax import api
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.base import no_parameters
from hra_jax.adapters.output import OutputAdapter
from hra_jax.data import pauses
from hra_jax.decoding import step
from hra_jax.errors import UserError
from hra_jax.models.asr import AsrModel
from hra_jax.storage.json_files import read_object
from hra_jax.storage.trees import flatten
from hra_jax.tasks import library
from hra_jax.text.task_vocabularies import OwnVocabularies
from hra_jax.text.vocabularies import CharacterVocabulary
from hra_jax.training import sharding

pytestmark = pytest.mark.optimised  # much here is about the bits that users get
TEXTS = ("fad cab", "b", "dead", "abcdefabc")
LENGTHS = (6720, 960, 3840, 8640)  # samples; 7, 1, 4 and 9 letters of 0.12 s at 8 kHz


@pytest.fixture(scope="module")
def backbone(micro):
    return hra_jax.load_backbone(micro.backbone)


@pytest.fixture(scope="module")
def model(trained, backbone):
    return hra_jax.load_adapter(trained.workdir / "adapter", backbone)


@pytest.fixture(scope="module")
def waveforms():
    found = [world.tones(text, pitch=1.1, seed=number) for number, text in enumerate(TEXTS)]
    assert tuple(map(len, found)) == LENGTHS
    return found


TASKS = ["cy", "__base__", "ann", "cy"]


# --- Log-probabilities ------------------------------------------------------------------------------------------------


def test_a_list_of_ragged_waveforms_gives_what_each_gives_alone(model, waveforms):
    log_probs, frames = model.log_probs(waveforms, sample_rate=8000, tasks=TASKS)
    assert log_probs.dtype == np.float32 and log_probs.shape == (4, max(frames), model.vocabulary("ann").size)
    # A feature frame for each whole 10 ms, an encoder frame for every two of them begun.
    assert frames.tolist() == [-(-(samples // 80) // 2) for samples in LENGTHS]
    for row, (waveform, task) in enumerate(zip(waveforms, TASKS, strict=True)):
        alone, (length,) = model.log_probs([waveform], sample_rate=8000, tasks=[task])
        assert length == frames[row]
        np.testing.assert_allclose(log_probs[row, :length], alone[0, :length], rtol=1e-5, atol=1e-5)


def test_each_row_of_a_mixed_batch_is_bit_identical_to_the_batch_of_its_task(model, waveforms):
    mixed, frames = model.log_probs(waveforms, sample_rate=8000, tasks=TASKS)
    for task in set(TASKS):
        pure, _ = model.log_probs(waveforms, sample_rate=8000, tasks=[task] * 4)
        for row in np.flatnonzero(np.array(TASKS) == task):
            np.testing.assert_array_equal(mixed[row, : frames[row]], pure[row, : frames[row]])
        other = TASKS.index(next(name for name in TASKS if name != task))
        assert not np.array_equal(mixed[other], pure[other])


def test_permuted_rows_are_bit_identical(model, waveforms):
    order = [2, 0, 3, 1]
    found, frames = model.log_probs(waveforms, sample_rate=8000, tasks=TASKS)
    permuted, _ = model.log_probs(
        [waveforms[row] for row in order], sample_rate=8000, tasks=[TASKS[row] for row in order]
    )
    for place, row in enumerate(order):
        np.testing.assert_array_equal(permuted[place, : frames[row]], found[row, : frames[row]])


def test_the_base_is_the_backbone_without_an_adapter(model, backbone, waveforms):
    alone, frames = backbone.log_probs(waveforms, sample_rate=8000)
    default, _ = model.log_probs(waveforms, sample_rate=8000)
    named, _ = model.log_probs(waveforms, sample_rate=8000, tasks=["__base__"] * 4)
    np.testing.assert_array_equal(default, named)
    for row, length in enumerate(frames):
        np.testing.assert_allclose(named[row, :length], alone[row, :length], rtol=1e-5, atol=1e-5)


def test_other_sample_rates_are_resampled(model, waveforms):
    high = [soxr.resample(waveform, 8000, 22050, quality="HQ") for waveform in waveforms]
    down = [soxr.resample(waveform, 22050, 8000, quality="HQ") for waveform in high]
    found, frames = model.log_probs(high, sample_rate=22050, tasks=TASKS)
    expected, lengths = model.log_probs(down, sample_rate=8000, tasks=TASKS)
    np.testing.assert_array_equal(found, expected)
    assert frames.tolist() == lengths.tolist()


def test_loudness_and_integer_samples_do_not_matter(model, waveforms):
    integers = (20000 * waveforms[0]).astype(np.int16)
    as_file, loud, quiet = (
        model.log_probs([samples], sample_rate=8000, tasks=["ann"])[0]
        for samples in (integers, integers.astype(np.float32), integers / 32768)
    )
    assert np.array_equal(as_file, quiet)
    np.testing.assert_allclose(loud, quiet, rtol=1e-3, atol=1e-3)


def test_an_empty_list_gives_empty_results(model, backbone):
    log_probs, frames = model.log_probs([], sample_rate=8000, tasks=[])
    assert log_probs.shape == (0, 0, model.vocabulary("ann").size) and frames.shape == (0,)
    assert model.transcribe([], sample_rate=8000, tasks=[]) == backbone.transcribe([], sample_rate=8000) == []


def test_audio_shorter_than_a_frame_has_no_frames_and_an_empty_text(model, waveforms):
    short = waveforms[1][:70]
    log_probs, frames = model.log_probs([short, waveforms[0]], sample_rate=8000, tasks=["ann", "ann"])
    assert frames[0] == 0 and frames[1] > 0 and np.isfinite(log_probs).all()
    assert model.transcribe([short], sample_rate=8000, tasks=["ann"]) == [""]


# --- Tasks come and go ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roomy(trained, backbone):
    return hra_jax.load_adapter(trained.workdir / "adapter", backbone, slots=5)


def run(model, waveforms, tasks):
    return model.log_probs(waveforms, sample_rate=8000, tasks=tasks)[0]


def test_free_slots_change_no_output(model, roomy, waveforms):
    assert (model.slots, roomy.slots) == (3, 5) and roomy.tasks == model.tasks == ("ann", "bob", "cy")
    np.testing.assert_array_equal(run(roomy, waveforms, TASKS), run(model, waveforms, TASKS))


def test_tasks_that_come_and_go_change_no_other_and_compile_nothing_until_the_slots_are_full(roomy, waveforms):
    tasks = ["ann", "bob", "cy", "__base__"]
    old, programs = run(roomy, waveforms, tasks), step.ALONE._cache_size()
    row = jax.tree.map(lambda leaf: 2 * leaf, roomy.row("bob"))
    one = roomy.with_task("dee", row)
    two = one.with_task("eve", roomy.row("cy"))
    less = two.without_task("bob").without_task("dee")
    again = less.with_task("bob", roomy.row("bob")).with_task("dee", row)
    assert less.tasks == ("ann", "cy", "eve") and again.tasks == ("ann", "cy", "eve", "bob", "dee")
    for changed in (one, two, again):
        np.testing.assert_array_equal(run(changed, waveforms, tasks), old)
    np.testing.assert_array_equal(run(less, waveforms, ["ann", "cy", "cy", "__base__"])[[0, 2, 3]], old[[0, 2, 3]])
    new = run(two, waveforms, ["dee", "dee", "eve", "dee"])
    np.testing.assert_array_equal(run(again, waveforms, ["dee", "dee", "eve", "dee"]), new)
    np.testing.assert_array_equal(new[2], old[2])
    assert np.abs(new[1] - old[1]).max() > 1e-4 and np.abs(new[3] - old[3]).max() > 1e-4
    assert step.ALONE._cache_size() == programs
    # One more than there are slots: another shape, the same outputs.
    full = two.with_task("fay", row)
    assert full.slots == 6
    np.testing.assert_array_equal(run(full, waveforms, tasks), old)
    assert step.ALONE._cache_size() == programs + 1
    np.testing.assert_array_equal(run(roomy, waveforms, tasks), old)


def test_the_row_of_a_task_is_what_its_folder_holds(trained, roomy):
    exported = read_adapter(trained.workdir / "adapter")
    for name in exported.tasks:
        found = flatten(roomy.row(name))
        assert found.keys() == flatten(exported.tasks[name]).keys()
        for path, leaf in flatten(exported.tasks[name]).items():
            np.testing.assert_array_equal(found[path], leaf)
    again = roomy.with_task("dee", exported.tasks["cy"])  # a tree without its empty parts
    jax.tree.map(np.testing.assert_array_equal, again.row("dee"), roomy.row("cy"))


@pytest.mark.parametrize("number", [-7, -1, 3, 4, 5, 1000, np.iinfo(np.int32).max])
def test_a_number_that_names_no_used_slot_is_the_base_whatever_lies_there(roomy, waveforms, number):
    spoiled = jax.tree.map(lambda leaf: leaf.at[3:].set(np.inf), roomy.rows)
    files, batch = roomy.backbone.files, np.zeros((4, 12000), np.float32)
    for row, waveform in enumerate(waveforms):
        batch[row, : len(waveform)] = waveform
    asr = AsrModel(files.features, files.encoder, adapter=roomy.adapter, dtype=roomy.backbone.dtype)

    def apply(numbers):
        parts = (roomy.backbone.params, roomy.shared, spoiled, np.int32(3), batch, np.array(LENGTHS, np.int32))
        return np.asarray(step.ALONE(asr, *parts, np.array(numbers, np.int32), None)[0])

    found = apply([0, number, 2, number])
    np.testing.assert_array_equal(found[[1, 3]], apply([-1] * 4)[[1, 3]])
    np.testing.assert_array_equal(found[[0, 2]], apply([0, 1, 2, 1])[[0, 2]])


def test_an_adapter_that_lost_its_last_task_is_the_base_and_takes_new_ones(roomy, waveforms):
    bare = functools.reduce(lambda model, name: model.without_task(name), roomy.tasks, roomy)
    assert bare.tasks == () and bare.slots == 5
    base = run(roomy, waveforms, ["__base__"] * 4)
    np.testing.assert_array_equal(run(bare, waveforms, ["__base__"] * 4), base)
    with pytest.raises(UserError, match="unknown task 'ann'"):
        run(bare, waveforms, ["ann"] * 4)
    np.testing.assert_array_equal(
        run(bare.with_task("zoe", roomy.row("cy")), waveforms, ["zoe"] * 4), run(roomy, waveforms, ["cy"] * 4)
    )


def test_a_folder_without_tasks_loads_and_takes_new_ones(trained, roomy, backbone, waveforms, tmp_path):
    library.write(tmp_path / "a", library.removed(read_adapter(trained.workdir / "adapter"), ["ann", "bob", "cy"]))
    bare = hra_jax.load_adapter(tmp_path / "a", backbone)
    np.testing.assert_array_equal(run(bare, waveforms, None), run(roomy, waveforms, None))
    taken = bare.with_task("cy", roomy.row("cy"))
    np.testing.assert_array_equal(run(taken, waveforms, ["cy"] * 4), run(roomy, waveforms, ["cy"] * 4))


def with_leaf(row, value):
    return row | {"all_layers": {"head": row["all_layers"]["head"] | {"bias": value}}}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.with_task("ann", m.row("cy")), "task 'ann' is there already"),
        (lambda m: m.with_task("__base__", m.row("cy")), "cannot have the name '__base__'"),
        (lambda m: m.with_task("__mean__", m.row("cy")), "cannot have the name '__mean__'"),
        (
            lambda m: m.with_task("dee", with_leaf(m.row("cy"), np.zeros(3))),
            r"the parameter 'all_layers/head/bias' is \(3,\); allowed is \(16,\)",
        ),
        (lambda m: m.with_task("dee", {}), "the parameter 'all_layers/head/bias' is absent; allowed is"),
        (
            lambda m: m.with_task("dee", m.row("cy") | {"per_layer": {"x": np.zeros(2)}}),
            r"the parameter 'per_layer/x' is \(2,\); allowed is absent",
        ),
        (lambda m: m.with_task("dee", with_leaf(m.row("cy"), np.full(16, np.nan))), "holds NaN or infinite values"),
        (
            lambda m: m.with_task("dee", m.row("cy"), vocabulary=m.backbone.vocabulary),
            "comes with a vocabulary; allowed is None",
        ),
        (lambda m: m.without_task("an"), "unknown task 'an'; did you mean 'ann'"),
        (lambda m: m.without_task("__base__"), "'__base__' has no parameters; allowed: ann, bob, cy"),
        (lambda m: m.row("__base__"), "'__base__' has no parameters; allowed: ann, bob, cy"),
        (lambda m: m.row("bop"), "unknown task 'bop'; did you mean 'bob'"),
    ],
)
def test_a_change_of_tasks_that_is_wrong_is_one_line(roomy, change, told):
    with pytest.raises(UserError, match=told) as caught:
        change(roomy)
    assert "\n" not in str(caught.value)


def test_too_few_slots_are_one_line(trained, backbone):
    for slots in (2, -1):
        with pytest.raises(UserError, match=f"slots = {slots}: .* has 3 tasks; allowed are 0 or at least as many"):
            hra_jax.load_adapter(trained.workdir / "adapter", backbone, slots=slots)


def test_a_task_with_a_vocabulary_of_its_own_brings_it_along(backbone, waveforms):
    size, width = 10, backbone.files.encoder.d_model
    own = {name: CharacterVocabulary(characters) for name, characters in {"x": " ab", "y": " ZYabc"}.items()}
    rng = np.random.default_rng(0)
    rows = {
        name: {"all_layers": {"output": {"kernel": rng.normal(size=(width, size)), "bias": rng.normal(size=size)}}}
        for name in own
    }
    bank = {"all_layers": {"output": {"kernel": np.zeros((3, width, size)), "bias": np.zeros((3, size))}}}
    bank = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), no_parameters() | bank)
    adapter = OutputAdapter(output="characters", output_size=size)
    model = api.Model(backbone, adapter, no_parameters(), bank, (), OwnVocabularies(backbone.vocabulary, {}, size))
    one = model.with_task("x", rows["x"], vocabulary=own["x"])
    two = one.with_task("y", rows["y"], vocabulary=own["y"])
    assert two.vocabulary("y").characters == own["y"].characters
    np.testing.assert_array_equal(run(two, waveforms, ["x"] * 4), run(one, waveforms, ["x"] * 4))
    assert set(two.transcribe(waveforms, sample_rate=8000, tasks=["y"] * 4)[0]) <= set(" ZYabc")
    with pytest.raises(UserError, match="comes with no vocabulary; allowed is one, as every task here has its own"):
        model.with_task("x", rows["x"])
    with pytest.raises(UserError, match="its vocabulary has 12 symbols; allowed: 10"):
        model.with_task("x", rows["x"], vocabulary=CharacterVocabulary(" abcdefghij"))


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waveform", "told"),
    [
        (np.array([0.1, np.nan] * 400), "NaN or infinite"),
        (np.array([0.1, np.inf] * 400), "NaN or infinite"),
        (np.zeros((2, 800)), r"shape \(2, 800\); allowed is 1-D"),
        (np.zeros(0), r"shape \(0,\); allowed is 1-D .* not empty"),
        ([0, 100] * 400, "samples of type int64; allowed are floats of full scale 1, and integers"),
        (np.zeros(800, bool), "samples of type bool"),
    ],
)
def test_a_waveform_that_is_none_is_one_line(model, waveform, told):
    for call in (model.log_probs, model.transcribe):
        with pytest.raises(UserError, match=told):
            call([waveform], sample_rate=8000, tasks=["ann"])


def test_what_overflows_is_one_line_that_names_the_task_and_no_empty_text(roomy, waveforms):
    loud = roomy.with_task("dee", jax.tree.map(lambda leaf: np.full_like(leaf, 3e38), roomy.row("ann")))
    for call in (loud.log_probs, loud.transcribe):
        with pytest.raises(UserError, match=r"^task 'dee': the log-probabilities are not finite; the w") as told:
            call(waveforms, sample_rate=8000, tasks=["ann", "__base__", "dee", "dee"])
        for place in (loud.folder, loud.backbone.files.folder):
            assert os.path.isdir(place) and f"'{place}'" in str(told.value)
    assert loud.transcribe(waveforms[:1], sample_rate=8000, tasks=["ann"])


@pytest.mark.parametrize("rate", [0, -8000, None, float("nan"), "8000"])
def test_a_sample_rate_that_is_none_is_one_line(model, waveforms, rate):
    with pytest.raises(UserError, match=r"^sample_rate = .*: allowed are numbers of Hz from 1$"):
        model.log_probs(waveforms[:1], sample_rate=rate, tasks=["ann"])


def test_an_unknown_task_is_named_with_near_matches(model, waveforms):
    for call in (model.log_probs, model.transcribe):
        with pytest.raises(UserError, match="unknown task 'bop'; did you mean 'bob'"):
            call(waveforms[:1], sample_rate=8000, tasks=["bop"])
    with pytest.raises(UserError, match="unknown task 'zzz'; allowed: ann, bob, cy, __base__"):
        model.vocabulary("zzz")
    with pytest.raises(UserError, match="2 tasks for 1 waveforms"):
        model.transcribe(waveforms[:1], sample_rate=8000, tasks=["ann", "bob"])


def test_an_adapter_of_another_backbone_is_refused_by_fingerprint(trained, micro, tmp_path):
    other = world.make_backbone(tmp_path / "other", seed=1)
    with pytest.raises(UserError) as caught:
        hra_jax.load_adapter(trained.workdir / "adapter", hra_jax.load_backbone(str(tmp_path / "other")))
    line = str(caught.value)
    assert micro.fingerprint[:12] in line and other[:12] in line and "'micro'" in line and "\n" not in line


def test_what_is_no_backbone_adapter_or_dtype_is_one_line(micro, backbone, tmp_path):
    with pytest.raises(UserError, match="holds backbone.json"):
        hra_jax.load_backbone(str(tmp_path))
    with pytest.raises(UserError, match="builtin:nothing"):
        hra_jax.load_backbone("builtin:nothing")
    with pytest.raises(UserError, match="adapter_config.json"):
        hra_jax.load_adapter(tmp_path, backbone)
    with pytest.raises(UserError, match="dtype = 'float64': allowed are 'auto', 'float32', 'bfloat16'"):
        hra_jax.load_backbone(micro.backbone, dtype="float64")


# --- Texts ------------------------------------------------------------------------------------------------------------


def collapsed(path, vocabulary) -> str:
    """Repeats merged, blanks dropped."""
    kept = [label for place, label in enumerate(path) if label != 0 and (place == 0 or path[place - 1] != label)]
    return vocabulary.decode(kept)


def test_the_text_is_the_best_path_of_the_log_probabilities(model, waveforms):
    log_probs, frames = model.log_probs(waveforms, sample_rate=8000, tasks=TASKS)
    expected = [
        collapsed(log_probs[row, :length].argmax(axis=-1), model.vocabulary(task))
        for row, (length, task) in enumerate(zip(frames, TASKS, strict=True))
    ]
    assert model.transcribe(waveforms, sample_rate=8000, tasks=TASKS, chunk_seconds=2) == expected
    assert len(set(expected)) > 1


def test_long_audio_says_what_its_chunks_say_and_comes_back_in_order(model, waveforms):
    together = model.transcribe(waveforms, sample_rate=8000, tasks=TASKS, chunk_seconds=0.8)
    alone = [
        model.transcribe([waveform], sample_rate=8000, tasks=[task], chunk_seconds=0.8)[0]
        for waveform, task in zip(waveforms, TASKS, strict=True)
    ]
    assert together == alone
    chunks = pauses.chunks(waveforms[3], 160, sample_rate=8000, longest_seconds=0.8)
    heard = [waveforms[3][chunk.start : chunk.stop] for chunk in chunks]
    assert len(chunks) == 2 and max(map(len, heard)) <= 6400
    paths = [model.log_probs([part], sample_rate=8000, tasks=["cy"])[0][0].argmax(axis=-1) for part in heard]
    assert together[3] == pauses.text(chunks, paths, model.vocabulary("cy"))


def test_chunks_are_as_long_as_what_was_trained_on(model, backbone, trained):
    seconds = read_object(trained.workdir / "adapter/adapter_config.json")["trained_seconds"]
    assert 0 < seconds == model.chunk_seconds
    assert model.mean().chunk_seconds == seconds
    assert dataclasses.replace(model, trained_seconds=0.0).chunk_seconds == backbone.chunk_seconds
    assert hra_jax.load_backbone("builtin:tiny").chunk_seconds == 5.0
    with pytest.raises(UserError, match="chunk_seconds = 0: allowed are numbers of seconds above 0"):
        model.transcribe([], sample_rate=8000, chunk_seconds=0)


# --- Shapes -----------------------------------------------------------------------------------------------------------


def test_weights_split_over_a_mesh_recognise_as_those_on_one_device(micro, backbone, waveforms):
    mesh = sharding.make_mesh(2, 2, tensor=2)
    split = hra_jax.load_backbone(micro.backbone, mesh)
    kernel = split.params["encoder"]["layers"]["ff1"]["up"]["kernel"]
    assert kernel.sharding.mesh == mesh and kernel.addressable_shards[0].data.size == kernel.size // 4
    assert split.fingerprint == backbone.fingerprint
    found, frames = split.log_probs(waveforms, sample_rate=8000)
    exact, expected = backbone.log_probs(waveforms, sample_rate=8000)
    np.testing.assert_array_equal(frames, expected)
    for row, length in enumerate(frames):
        np.testing.assert_allclose(found[row, :length], exact[row, :length], atol=1e-4)


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(micro, backbone, waveforms):
    half = hra_jax.load_backbone(micro.backbone, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    assert half.fingerprint == backbone.fingerprint
    found, frames = half.log_probs(waveforms, sample_rate=8000)
    exact, _ = backbone.log_probs(waveforms, sample_rate=8000)
    assert found.dtype == np.float32
    errors = [np.abs(found[row, :length] - exact[row, :length]).mean() for row, length in enumerate(frames)]
    assert 0 < max(errors) < 0.3


def test_the_package_offers_what_notebooks_import():
    assert re.fullmatch(r"[\w.]+", hra_jax.load_backbone.__module__)
    assert hra_jax.Model is api.Model and hra_jax.Backbone is api.Backbone
    with pytest.raises(AttributeError, match="no attribute 'load_backbones'"):
        _ = hra_jax.load_backbones


def test_files_that_decoding_names_are_read_again_where_they_were_written_again(model, waveforms, tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("fad\n")
    first = model.decoder({"phrases": str(file)}, ["ann"])
    assert model.decoder({"phrases": str(file)}, ["ann"]) is first
    file.write_text("fad\ncab\n")
    assert len(model.decoder({"phrases": str(file)}, ["ann"]).phrases()["ann"]) == 2
    sound = {"sample_rate": 8000, "tasks": ["bob"]}
    with pytest.raises(UserError, match="a decoder of the tasks 'ann' has none for 'bob'"):
        model.recognise(waveforms[:1], decode=first, **sound)
    with pytest.raises(UserError, match=r"decode\.phrase_weight = 2\.0 would do nothing: there are no phrases"):
        model.recognise(waveforms[:1], decode={"phrase_weight": 2.0}, **sound)
