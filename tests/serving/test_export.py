"""Recognisers for servers: the program gives what the library gives, in a process that has what jax needs alone."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from reference import micro as world
from reference import published, tiny

import hra_jax
from hra_jax import api, export, verify
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.adapters.output import OutputAdapter
from hra_jax.convert.conversion import convert
from hra_jax.decoding import step
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.serving import folder, program, standalone
from hra_jax.storage import safetensors
from hra_jax.storage.trees import flatten
from hra_jax.tasks import adding, library
from hra_jax.text.published_vocabularies import CtcTokenVocabulary
from hra_jax.text.vocabularies import BlankVocabulary, CharacterVocabulary, SentencePieceVocabulary

# What a server does, in a process that can import nothing but jax, what jax itself needs, and flatbuffers.
SERVER = """
import importlib.machinery, json, pathlib, sys

class Allowed(importlib.machinery.PathFinder):
    tops = {*sys.stdlib_module_names, *sys.argv[5].split()}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        top = name.partition(".")[0]
        there = top in cls.tops or top.startswith("_sysconfigdata")
        return super().find_spec(name, path, target) if there else None

sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Allowed]
import numpy as np
served = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(served))
import serve

recogniser = serve.Recogniser(served)
names = json.loads(sys.argv[3])
rows = [serve.BASE if name is None else recogniser.row(served / "tasks" / f"{name}.safetensors") for name in names]
waveforms = list(np.load(sys.argv[2]).values())
found = recogniser.log_probs(waveforms, rows)
texts = [recogniser.text(log_probs, row) for log_probs, row in zip(found, rows)]
np.savez(sys.argv[4], *found)
told = []
for wrong in (waveforms[-1] + np.float32("nan"), np.int16(32767 * waveforms[-1])):
    try:
        told.append(str(recogniser.log_probs([*waveforms[:-1], wrong], rows)))
    except ValueError as error:
        told.append(str(error))
foreign = sorted({name.partition(".")[0] for name in sys.modules} & {"hra_jax", "flax", "tensorflow", "safetensors"})
print(json.dumps({"texts": texts, "told": told, "foreign": foreign}))
"""
# Compiles a program for a TPU that is not there.
COMPILER = """
import pathlib, sys
import jax, jax.export
from hra_jax.tpu import topologies

chip = topologies.devices(topologies.parse("v5e:2x2"))[0]
here = jax.sharding.SingleDeviceSharding(chip)
program = jax.export.deserialize(pathlib.Path(sys.argv[1]).read_bytes())
sizes = {"b": 4, "k": 2, "s": 16000}
leaves = [
    jax.ShapeDtypeStruct([sizes.get(str(size), size) for size in aval.shape], aval.dtype, sharding=here)
    for aval in program.in_avals
]
arguments, _ = jax.tree.unflatten(program.in_tree, leaves)
compiled = jax.jit(program.call).lower(*arguments).compile()
print(chip.device_kind, [list(info.shape) for info in jax.tree.leaves(compiled.out_info)])
"""
SERVERS_HAVE = "jax jaxlib ml_dtypes numpy opt_einsum scipy flatbuffers serve"
TEXTS = ("fad cab", "b", "dead", "abcdefabc", "bed fad")


def serve(served: Path, waveforms, names, env, tmp_path):
    np.savez(tmp_path / "in.npz", *waveforms)
    words = [served, tmp_path / "in.npz", json.dumps(names), tmp_path / "out.npz", SERVERS_HAVE]
    line = [sys.executable, "-c", SERVER, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["foreign"] == []
    wrong = ("its samples or log-probabilities are not finite", "samples are int16, not floats of full scale 1")
    assert told["told"] == [f"utterance {len(waveforms) - 1} of the batch: {words}" for words in wrong]
    return list(np.load(tmp_path / "out.npz").values()), told["texts"]


@pytest.fixture
def adapter(micro, tmp_path) -> Path:
    return world.write_adapter(tmp_path / "adapter", tiny.ADAPTERS["linear"], micro)


def newcomer(adapter: Path, micro) -> None:
    """Adds a task to an adapter: the mean of the others."""
    library.write(
        adapter, adding.started_task(read_adapter(adapter), "dan/\u00e9", init="mean", backbone=micro.backbone)
    )


@pytest.mark.slow(minutes=0.4)
@pytest.mark.optimised
def test_a_server_without_hra_jax_gives_what_the_library_gives_for_tasks_that_came_later_too(
    micro, adapter, command_env, tmp_path
):
    served = tmp_path / "served"
    export.export(adapter, served, backbone=micro.backbone)
    before = {path.name: path.read_bytes() for path in served.rglob("*") if path.is_file()}
    newcomer(adapter, micro)
    export.export(adapter, served, backbone=micro.backbone, tasks=["dan/\u00e9"])
    after = {path.name: path.read_bytes() for path in served.rglob("*") if path.is_file()}
    # One small file is new. It says nothing of where it was made.
    assert after.keys() - before.keys() == {"dan%2F%C3%A9.safetensors"}
    assert {name for name in before if before[name] != after[name]} == {"files.json"}
    assert b"hra_jax/" not in after["recogniser.stablehlo"] and str(tmp_path).encode() not in b"".join(after.values())

    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    waveforms = [world.tones(text, pitch=1.1, seed=number) for number, text in enumerate(TEXTS)]
    tasks = ["ann", "bob", "cy", "dan/\u00e9", "__base__"]
    names = ["ann", "bob", "cy", "dan%2F%C3%A9", None]
    found, texts = serve(served, waveforms, names, command_env, tmp_path)
    log_probs, frames = model.log_probs(waveforms, sample_rate=world.RATE, tasks=tasks)
    assert len({row.tobytes() for row in log_probs}) == len(tasks)
    for row, (own, length) in enumerate(zip(found, frames, strict=True)):
        assert len(own) == length
        np.testing.assert_allclose(own, log_probs[row, :length], rtol=0, atol=1e-5)
        alone, _ = model.log_probs([waveforms[row]], sample_rate=world.RATE, tasks=[tasks[row]])  # another padding
        np.testing.assert_allclose(own, alone[0, :length], rtol=0, atol=1e-4)
    written = model.transcribe(waveforms, sample_rate=world.RATE, tasks=tasks, chunk_seconds=9)
    assert texts == [text.strip() for text in written] and any(texts)


@pytest.mark.slow(minutes=0.3)
@pytest.mark.optimised
def test_tasks_with_vocabularies_of_their_own_are_served_in_them(micro, command_env, tmp_path):
    own = {"ann": CharacterVocabulary(" abcdef"), "bob": CharacterVocabulary("fed xyz"), "cy": CharacterVocabulary("c")}
    adapter = world.write_adapter(tmp_path / "adapter", OutputAdapter(output="characters", output_size=9), micro)
    exported = read_adapter(adapter)
    entries = [entry | {"vocabulary": own[entry["name"]].to_json()} for entry in exported.tasks_json]
    library.write(adapter, dataclasses.replace(exported, tasks_json=entries))
    export.export(adapter, tmp_path / "served", backbone=micro.backbone)
    waveforms = [world.tones(text, seed=number) for number, text in enumerate(TEXTS[:4])]
    found, texts = serve(tmp_path / "served", waveforms, ["ann", "bob", "cy", None], command_env, tmp_path)
    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    tasks = ["ann", "bob", "cy", "__base__"]
    log_probs, frames = model.log_probs(waveforms, sample_rate=world.RATE, tasks=tasks)
    for row, (task, length) in enumerate(zip(tasks, frames, strict=True)):
        width = model.vocabulary(task).size
        # Here every blank is output 0, so the order is the task's own.
        np.testing.assert_allclose(found[row][:, :width], log_probs[row, :length, :width], rtol=0, atol=1e-5)
    written = model.transcribe(waveforms, sample_rate=world.RATE, tasks=tasks, chunk_seconds=9)
    assert texts == [text.strip() for text in written] and any(texts)


@pytest.mark.slow(minutes=0.2)
@pytest.mark.optimised
def test_a_task_that_is_set_aside_is_served_by_the_backbone_alone_where_tasks_share_an_output_layer(micro, tmp_path):
    method = dataclasses.replace(tiny.ADAPTERS["linear"], output="shared_characters", output_size=9)
    adapter = world.write_adapter(tmp_path / "adapter", method, micro)
    exported = read_adapter(adapter)
    entries = [entry | ({"set_aside": {}} if entry["name"] == "bob" else {}) for entry in exported.tasks_json]
    config = exported.config | {"vocabulary": CharacterVocabulary("fed cab").to_json()}
    library.write(adapter, dataclasses.replace(exported, config=config, tasks_json=entries))
    served = tmp_path / "served"
    export.export(adapter, served, backbone=micro.backbone)
    recogniser = standalone.Recogniser(served)
    rows = [recogniser.row(served / folder.task_file(task)) for task in ("ann", "bob")]
    waveforms = [world.tones(text, seed=1) for text in TEXTS[:2]]
    found = recogniser.log_probs(waveforms, rows)
    model = hra_jax.load_adapter(adapter, hra_jax.load_backbone(micro.backbone))
    log_probs, frames = model.log_probs(waveforms, sample_rate=world.RATE, tasks=["ann", "bob"])
    for row, (task, length) in enumerate(zip(("ann", "bob"), frames, strict=True)):
        width = model.vocabulary(task).size
        np.testing.assert_allclose(found[row][:, :width], log_probs[row, :length, :width], rtol=0, atol=1e-5)


@pytest.mark.slow(minutes=0.6)
@pytest.mark.parametrize("family", ["w2v-bert shaw", "conformer rope", "parakeet", "lasr"])
def test_programs_of_published_encoders_are_right_for_any_batch_and_length(family, tmp_path):
    """Each has another kind of features, subsampling and positions."""
    published.write(tmp_path / "source", family)
    convert(tmp_path / "source", tmp_path / "backbone")
    files = backbone_folder.load(tmp_path / "backbone")
    adapter = tiny.ADAPTERS["linear"]
    trainable = tiny.random_trainable(adapter, files.encoder, tasks=3)
    flat = {part: flatten(trainable[part], separator=".") for part in ("shared", "tasks")}
    params = flatten(files.params, separator=".")
    shapes = [
        {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in tensors.items()}
        for tensors in (params, flat["shared"], {name: leaf[0] for name, leaf in flat["tasks"].items()})
    ]
    made = program.make(files.features, files.encoder, adapter, backbone=shapes[0], shared=shapes[1], row=shapes[2])
    assert made.platforms == ("cpu", "cuda", "tpu")
    rng, rate = np.random.default_rng(0), files.features.sample_rate
    batch, size = 2, rate + 1234
    waveform = rng.uniform(-0.5, 0.5, (batch, size)).astype(np.float32)
    lengths, rows = np.array([size, rate // 2], np.int32), np.array([2, -1], np.int32)
    found, frames = made.call(params, flat["shared"], flat["tasks"], rows, waveform, lengths)
    model = api.AsrModel(files.features, files.encoder, adapter=adapter)
    banks = (trainable["shared"], trainable["tasks"])
    expected, counted = jax.jit(step.apply_model, static_argnums=0)(
        model, files.params, *banks, np.int32(3), waveform, lengths, rows, None
    )
    assert frames.tolist() == counted.tolist() and frames[0] > frames[1] > 0
    for row, length in enumerate(counted):
        np.testing.assert_allclose(found[row, :length], expected[row, :length], rtol=0, atol=1e-4)


# --- Around the program -----------------------------------------------------------------------------------------------


@pytest.mark.slow(minutes=0.5)
def test_a_program_compiles_for_tpus(served, tpu_env, tmp_path):
    _, there = served
    line = [sys.executable, "-c", COMPILER, str(there / "recogniser.stablehlo")]
    done = subprocess.run(line, capture_output=True, text=True, env=tpu_env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads((there / "serving.json").read_text())
    frames = -(-16000 // facts["samples_per_frame"])
    assert done.stdout.startswith("TPU v5") and f"[[4, {frames}, {len(facts['labels'])}], [4]]" in done.stdout


@pytest.mark.parametrize(
    "vocabulary",
    [
        CharacterVocabulary(" abcdefghi'"),
        CtcTokenVocabulary(["A", "B", "C", "_", "<s>", "|", "D"], blank_id=3, special_ids=[4]),
        SentencePieceVocabulary.train(["the cab", "a bad bee", "cafe decaf", "deface the facade"] * 3, 24, fewer=True),
    ],
    ids=["characters", "published symbols", "pieces"],
)
def test_labels_put_together_are_the_text(vocabulary):
    labels = program.labels(vocabulary)
    assert len(labels) == vocabulary.size and labels[vocabulary.blank_id] == ""
    rng = np.random.default_rng(0)
    for text in ("a bad cab", "abc", "cab a", "b"):
        ids = vocabulary.encode(text)
        assert "".join(labels[i] for i in ids).strip().lower() == text
    for _ in range(100):
        ids = [int(i) for i in rng.integers(0, vocabulary.size, 6) if i != vocabulary.blank_id]
        assert "".join(labels[i] for i in ids).strip() == vocabulary.decode(ids).strip()


def test_an_encoder_without_texts_has_labels_without_texts():
    assert program.labels(BlankVocabulary()) == [""]


@pytest.fixture(scope="module")
def served(micro, tmp_path_factory) -> tuple[Path, Path]:
    """An adapter, and what was exported of it."""
    here = tmp_path_factory.mktemp("served")
    adapter = world.write_adapter(here / "adapter", tiny.ADAPTERS["linear"], micro)

    export.export(adapter, here / "served", backbone=micro.backbone)
    return adapter, here / "served"


def test_a_row_of_another_adapter_is_refused_by_the_command_and_by_the_server(micro, served, tmp_path):
    adapter, there = served
    other = world.write_adapter(tmp_path / "other", dataclasses.replace(tiny.ADAPTERS["linear"], width=5), micro)
    with pytest.raises(UserError) as caught:
        export.export(other, there, backbone=micro.backbone, tasks=["ann"])
    assert re.search(
        r"was exported with the adapter \w{12}, and the tasks belong to the adapter \w{12};", str(caught.value)
    )
    row = folder.Source(
        read_adapter(other), backbone_folder.load(micro.backbone), dtype="float32", where="other"
    ).row_bytes("ann")
    (tmp_path / "ann.safetensors").write_bytes(row)
    recogniser = object.__new__(standalone.Recogniser)
    recogniser.facts = json.loads((there / "serving.json").read_text())
    with pytest.raises(ValueError, match="made for the adapter"):
        recogniser.row(tmp_path / "ann.safetensors")
    tensors, labels = recogniser.row(there / "tasks" / "ann.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        name: entry["shape"] for name, entry in recogniser.facts["row"].items()
    }
    assert "".join(labels) == world.LETTERS
    for name, leaf in flatten(read_adapter(adapter).tasks["ann"], separator=".").items():
        np.testing.assert_array_equal(tensors[name], leaf)


def test_a_task_that_is_set_aside_is_served_as_the_backbone_alone(micro, tmp_path):
    adapter = world.write_adapter(tmp_path / "adapter", tiny.ADAPTERS["linear"], micro)
    exported = read_adapter(adapter)
    entries = [entry | ({"set_aside": {}} if entry["name"] == "bob" else {}) for entry in exported.tasks_json]
    exported = dataclasses.replace(exported, tasks_json=entries)
    source = folder.Source(exported, backbone_folder.load(micro.backbone), dtype="float32", where="adapter")
    for task in ("ann", "bob"):
        values = safetensors.from_bytes(source.row_bytes(task), where=task).values()
        assert any(leaf.any() for leaf in values) == (task == "ann")
        # Zeros are not enough where tasks share an output layer: the server uses no adapter at all.
        (tmp_path / task).write_bytes(source.row_bytes(task))
        recogniser = object.__new__(standalone.Recogniser)
        recogniser.facts = {
            "labels": [],
            "backbone": {"fingerprint": source.files.fingerprint},
            "adapter": {"fingerprint": source.fingerprint},
        }
        assert (recogniser.row(tmp_path / task) is standalone.BASE) == (task == "bob")


def test_what_is_no_export_is_not_replaced_by_one(micro, served, tmp_path):
    adapter, there = served
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(there)
    for place, words in (
        (tmp_path / "mine", "holds something else; allowed: a new or empty folder, or an export"),
        (tmp_path / "file", "is there and is no folder"),
        ("gs://bucket/served", "is in a bucket; allowed: a folder here"),
        (tmp_path / "link", "link"),
    ):
        with pytest.raises(UserError, match=words):
            export.export(adapter, place, backbone=micro.backbone)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    with pytest.raises(UserError, match="holds no export; allowed with --task: one that was made without it"):
        export.export(adapter, tmp_path / "new", backbone=micro.backbone, tasks=["ann"])
    with pytest.raises(UserError, match="unknown task 'anne'; did you mean 'ann'"):
        export.export(adapter, there, backbone=micro.backbone, tasks=["anne"])
    with pytest.raises(UserError, match="dtype = 'int8': allowed: float32, bfloat16"):
        export.export(adapter, tmp_path / "new", backbone=micro.backbone, dtype="int8")


def test_an_empty_name_of_a_task_does_not_export_all_of_them(served, monkeypatch):
    adapter, there = served
    before = (there / "files.json").read_bytes(), (there / "files.json").stat().st_ino
    values = flags.FlagValues()
    export.define_flags(values)
    monkeypatch.setattr(export, "FLAGS", values)
    with pytest.raises(UserError, match="--task is empty; allowed: names of tasks"):
        export.main(values(["export", str(adapter), "--output", str(there), "--task="]))
    assert ((there / "files.json").read_bytes(), (there / "files.json").stat().st_ino) == before


def test_one_flipped_byte_of_an_export_is_found_after_a_row_was_added_too(micro, served, tmp_path):
    adapter, there = served
    (part,) = verify.verify(there)
    assert part.files >= 8 and part.faults == []
    copy = Path(shutil.copytree(there, tmp_path / "copy"))
    row = copy / "tasks" / "cy.safetensors"
    content = bytearray(row.read_bytes())
    content[-3] ^= 1
    row.write_bytes(content)
    (copy / "recogniser.stablehlo").unlink()
    faults = [("recogniser.stablehlo", "is missing"), ("tasks/cy.safetensors", "is not what was written")]
    (part,) = verify.verify(copy)
    assert part.faults == faults
    # A row that is added vouches for nothing else.
    export.export(adapter, copy, backbone=micro.backbone, tasks=["ann"])
    (part,) = verify.verify(copy)
    assert part.faults == faults
    (copy / "files.json").unlink()
    with pytest.raises(UserError, match=r"files\.json is not a file"):
        export.export(adapter, copy, backbone=micro.backbone, tasks=["ann"])
