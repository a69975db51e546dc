"""Adapters in PyTorch beside transformers models give what they give in JAX, mixed tasks in a batch."""

import json

import jax
import numpy as np
import pytest
from reference import published

from hra_jax import api
from hra_jax.adapters import adapter_folder, initial, methods
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.output_kinds import SHARED_VOCABULARIES
from hra_jax.adapters.residual import ResidualAdapter
from hra_jax.convert.conversion import convert
from hra_jax.decoding import step
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.asr import AsrModel
from hra_jax.storage import safetensors
from hra_jax.tasks import commands, gate, library
from hra_jax.text.vocabularies import CharacterVocabulary

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.slow

FAMILIES = ("w2v-bert shaw", "conformer rel-pos", "conformer rope", "parakeet", "lasr", "seamless encoder")
NAMES = ("ann", "bob")
TASKS = ["bob", "__base__", "ann", "bob"]
OWN = {"ann": CharacterVocabulary("ab c"), "bob": CharacterVocabulary("xa")}
VARIANTS = {
    "lstm, ffn": dict(recurrence="lstm", head="ffn", head_width=3),
    "gru, lowrank, of the input": dict(recurrence="gru", head="lowrank", head_width=2, reads="input"),
    "some layers, a head for each": dict(layers=(1,), head_per_layer=True),
    "output layers of tasks": dict(output="task"),
    "vocabularies of tasks": dict(output="characters", output_size=7),
    "one new vocabulary": dict(output="shared_characters", output_size=7),
}
PAIRS = [(family, variant) for family in ("w2v-bert shaw", "parakeet") for variant in VARIANTS]
# An encoder without a head needs a vocabulary of the tasks' own.
PAIRS += [("w2v-bert bare", variant) for variant, settings in VARIANTS.items() if "output_size" in settings]


class FromFeatures(AsrModel):
    """The model behind its features."""

    def _features(self, waveform, num_samples, sounds=None):
        return waveform, num_samples


class Published:
    """A tiny published folder, converted, and loaded by transformers."""

    def __init__(self, family: str, place):
        self.family = family
        self.folder = published.write(place / "published", family)
        convert(self.folder, place / "backbone")
        self.backbone = api.load_backbone(str(place / "backbone"), dtype="float32")
        self.model = self._class().from_pretrained(self.folder, layerdrop=0.0).eval()

    def _class(self):
        if self.family.startswith("seamless"):
            from transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2 import SeamlessM4Tv2SpeechEncoder

            return SeamlessM4Tv2SpeechEncoder
        return getattr(transformers, json.loads((self.folder / "config.json").read_text())["architectures"][0])

    def inputs(self, *, ragged: bool = True):
        """Features (samples for a waveform CNN) of four rows, their lengths, and transformers' arguments."""
        features, rng = self.backbone.files.features, np.random.default_rng(5)
        waves = features.kind == "waveform"
        lengths = np.array([4000, 3300, 2100, 2750] if waves else [61, 48, 33, 40], np.int32)
        lengths = lengths if ragged else np.full_like(lengths, lengths.max())
        shape = (4, lengths.max()) if waves else (4, lengths.max(), features.width)
        x = rng.standard_normal(shape).astype(np.float32)
        mask = np.arange(lengths.max())[None] < lengths[:, None]
        x *= mask.reshape(mask.shape + (1,) * (x.ndim - 2))
        name = "input_values" if waves else "input_features"
        return x, lengths, {name: torch.from_numpy(x), "attention_mask": torch.from_numpy(mask.astype(np.int64))}

    def export(self, method, folder, seed: int = 7):
        """An adapter of that method with random weights."""
        files = self.backbone.files
        weights = initial.new_weights(method, jax.random.key(0), files.encoder, len(NAMES))
        rng = np.random.default_rng(seed)
        weights = jax.tree.map(lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), weights)
        entries = [{"name": name, "row": row} for row, name in enumerate(NAMES)]
        shared = method.output in SHARED_VOCABULARIES
        if method.output == "characters":
            entries = [entry | {"vocabulary": OWN[entry["name"]].to_json()} for entry in entries]
        adapter_folder.write_adapter(
            folder,
            method=methods.settings(method),
            weights=weights,
            tasks=entries,
            backbone={"name": "published", "fingerprint": files.fingerprint},
            vocabulary=OWN["ann"].to_json() if shared else files.vocabulary,
            accounting={
                "trainable_parameters": 1,
                "shared_parameters": 1,
                "parameters_per_task": 1,
                "backbone_parameters": 1,
                "backbone_fingerprint": files.fingerprint,
            },
        )
        return api.load_adapter(folder, self.backbone)

    def in_jax(self, model: api.Model, x, lengths, names):
        """Log-probabilities from features, as `Model.log_probs` gives them from waveforms, and the lengths."""
        files = self.backbone.files
        network = FromFeatures(files.features, files.encoder, adapter=model.adapter)
        x = x[..., None] if x.ndim == 2 else x  # a waveform has one channel behind its features
        symbols = None if model.own is None else np.stack([model.own.symbols(task) for task in names])
        found, frames = jax.jit(step.apply_model, static_argnums=0)(
            network,
            self.backbone.params,
            model.shared,
            model.rows,
            len(NAMES),
            x,
            lengths,
            model._task_ids(names),
            symbols,
        )
        found = np.asarray(found)
        if model.own is not None:
            found = np.take_along_axis(found, np.stack([model.own.columns(task) for task in names])[:, None], axis=2)
        return found, np.asarray(frames)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = {}

    def get(family: str) -> Published:
        if family not in made:
            made[family] = Published(family, tmp_path_factory.mktemp("world"))
        return made[family]

    return get


def agree(expected, frames, logits, tolerance=1e-4):
    """The largest difference of log-probabilities on valid frames, which must not all be the same."""
    actual = torch.log_softmax(logits.double(), dim=-1).numpy()
    apart = max(np.abs(expected[row, :n] - actual[row, :n]).max() for row, n in enumerate(frames))
    assert apart < tolerance and min(frames) > 2
    return apart


def adapted(model, folder, **options):
    from hra_jax.torch import AdaptedModel

    return AdaptedModel(model, folder, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_outputs_of_jax(world, family, tmp_path):
    there = world(family)
    settings = dict(output="characters", output_size=7) if family.startswith("seamless") else {}
    model = there.export(HierarchicalRecurrentAdapter(width=5, **settings), tmp_path / "adapter")
    x, lengths, inputs = there.inputs()
    expected, frames = there.in_jax(model, x, lengths, TASKS)
    module = adapted(there.model, tmp_path / "adapter")
    with torch.no_grad():
        found = module(tasks=TASKS, **inputs)
        print(f"{family}: {agree(expected, frames, found):.1e}")
        plain = module(tasks=["__base__"] * 4, **inputs)
    assert (found[[0, 2, 3]] - plain[[0, 2, 3]]).abs().max() > 1e-2, "the adapter changes nothing"
    torch.testing.assert_close(found[1], plain[1], rtol=0, atol=0)
    assert module.frames(inputs["attention_mask"]).tolist() == frames.tolist()
    if not settings:
        # Without the wrapper the published model lets padding leak where it has no mask; the longest row has none.
        rows = [0] if family.startswith("conformer") else [0, 1, 2, 3]
        with torch.no_grad():
            torch.testing.assert_close(there.model(**inputs).logits[rows], plain[rows], rtol=0, atol=0)


@pytest.mark.parametrize(("family", "variant"), PAIRS)
def test_every_variant_gives_the_outputs_of_jax(world, family, variant, tmp_path):
    there = world(family)
    method = HierarchicalRecurrentAdapter(**(dict(width=5) | VARIANTS[variant]))
    model = there.export(method, tmp_path / "adapter")
    x, lengths, inputs = there.inputs()
    expected, frames = there.in_jax(model, x, lengths, TASKS)
    module = adapted(there.model, tmp_path / "adapter", backbone=there.backbone.files.folder)
    with torch.no_grad():
        found = module(tasks=TASKS, **inputs)
    agree(expected, frames, found)
    assert len(module.decode(found, frames, TASKS)) == 4


def test_texts_are_those_of_jax(world, tmp_path):
    there = world("parakeet")
    model = there.export(
        HierarchicalRecurrentAdapter(width=5, output="characters", output_size=7), tmp_path / "adapter"
    )
    x, lengths, inputs = there.inputs()
    expected, frames = there.in_jax(model, x, lengths, TASKS)
    from hra_jax.models import ctc

    blanks = [model.vocabulary(task).blank_id for task in TASKS]
    labels = ctc.greedy_decode(expected, frames, blanks)
    texts = [model.vocabulary(task).decode(ids) for task, ids in zip(TASKS, labels, strict=True)]
    module = adapted(there.model, tmp_path / "adapter")
    with torch.no_grad():
        assert module.decode(module(tasks=TASKS, **inputs), frames, TASKS) == texts
    assert len(set(texts)) > 2


def test_what_does_not_fit_is_one_line(world, tmp_path):
    bert, parakeet = world("w2v-bert shaw"), world("parakeet")
    bert.export(HierarchicalRecurrentAdapter(width=5), tmp_path / "a")
    bert.export(LowRankAdapter(rank=2), tmp_path / "lora")
    bert.export(HierarchicalRecurrentAdapter(width=5, layers=(1,), reads="attention.output"), tmp_path / "reads")
    bert.export(HierarchicalRecurrentAdapter(width=5, output="shared_characters", output_size=7), tmp_path / "shared")
    _, _, inputs = bert.inputs()
    bare = world("w2v-bert bare")
    bare.export(HierarchicalRecurrentAdapter(width=5, output="characters", output_size=7), tmp_path / "bare")
    bert.export(HierarchicalRecurrentAdapter(width=5, output="characters", output_size=7), tmp_path / "own")
    module = adapted(bert.model, tmp_path / "a")
    logits, frames = torch.zeros(4, 61, 9), [61, 62, 1, 1]
    for told, attempt in {
        "allowed here: 'hra'": lambda: adapted(bert.model, tmp_path / "lora"),
        "allowed here: 'layer', 'input'": lambda: adapted(bert.model, tmp_path / "reads"),
        "backbone=DIR": lambda: adapted(bert.model, tmp_path / "shared"),
        "trained on the backbone": lambda: adapted(bert.model, tmp_path / "a", backbone=parakeet.backbone.files.folder),
        "unknown task 'carl'": lambda: module(tasks=["carl"] * 4, **inputs),
        "2 tasks for a batch of 4": lambda: module(tasks=["ann", "bob"], **inputs),
        "0 tasks for a batch of 4": lambda: module(tasks=[], **inputs),
        "62 valid frames of 61": lambda: module.decode(logits, frames, TASKS),
        "for a model with no output layer; Wav2Vec2BertForCTC has ": lambda: adapted(bert.model, tmp_path / "bare"),
        "Wav2Vec2BertModel has no output layer": lambda: adapted(bare.model, tmp_path / "own"),
        "has 0 encoders": lambda: adapted(torch.nn.Linear(2, 2), tmp_path / "a"),
    }.items():
        with pytest.raises(UserError) as caught:
            attempt()
        assert told in str(caught.value) and "\n" not in str(caught.value)


def edit_adapter(folder, *, settings=None, tensor=None):
    """Changes settings of the method, and gives a tensor of every task another shape, in header and declaration."""
    config = json.loads((folder / "adapter_config.json").read_text())
    config["method"] |= settings or {}
    if tensor is not None:
        path, shape = tensor
        config["tensors"]["task"][path]["shape"] = list(shape)
        arrays = safetensors.from_bytes((folder / "adapter_model.safetensors").read_bytes(), where="x")
        changed = {name: np.ones(shape, np.float32) for name in arrays if name.endswith(path)}
        (folder / "adapter_model.safetensors").write_bytes(safetensors.to_bytes(arrays | changed))
    config.pop("sha256", None)  # or that would be what is refused
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("method", "changes", "told"),
    [
        (ResidualAdapter(width=3), {"settings": {"width": 4}}, "tensors.task are .* numbers; the settings .* ask for"),
        (ResidualAdapter(width=3), {"settings": {"width": -1}}, "residual.width = -1: allowed"),
        (ResidualAdapter(width=3), {"tensor": ("per_layer.up.bias", (2, 1))}, "tensors.task are .* numbers"),
        (ResidualAdapter(width=3), {"tensor": ("per_layer.up.kernel", (2, 8, 3))}, "do not fit the settings"),
        (HierarchicalRecurrentAdapter(width=5), {"settings": {"recurrence": "gru"}}, "tensors.shared are .* numbers"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(world, tmp_path, method, changes, told):
    there = world("w2v-bert shaw")
    there.export(method, tmp_path / "stranger")
    edit_adapter(tmp_path / "stranger", **changes)
    with pytest.raises(UserError, match=f"stranger.*{told}"):
        adapted(there.model, tmp_path / "stranger")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_wrapper_that_is_cast_is_computed_in_float32(world, dtype, tmp_path):
    there = world("w2v-bert shaw")
    there.export(HierarchicalRecurrentAdapter(width=5, output="task"), tmp_path / "a")
    _, _, inputs = there.inputs()
    model = there._class().from_pretrained(there.folder, layerdrop=0.0).eval()
    inputs["input_features"] = inputs["input_features"].to(dtype)
    with torch.no_grad():
        expected = adapted(model.to(dtype), tmp_path / "a")(tasks=TASKS, **inputs)
        found = adapted(model, tmp_path / "a").to(dtype)(tasks=TASKS, **inputs)
    assert found.dtype == dtype
    # The adapter's own weights are rounded too.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.3 if dtype == torch.bfloat16 else 1e-6)


def test_a_wrapper_holds_every_weight_once(world, tmp_path):
    there = world("w2v-bert shaw")
    there.export(HierarchicalRecurrentAdapter(width=5), tmp_path / "a")
    module = adapted(there.model, tmp_path / "a")
    assert set(module.state_dict()) == {f"model.{name}" for name in there.model.state_dict()}


def test_layers_that_are_left_out_are_an_error(world, tmp_path):
    there = world("w2v-bert shaw")
    there.export(HierarchicalRecurrentAdapter(width=5), tmp_path / "a")
    module = adapted(there.model, tmp_path / "a")
    there.model.config.layerdrop, before = 1.0, there.model.config.layerdrop
    there.model.train()
    try:
        with pytest.raises(UserError, match=r"^0 of 2 layers ran"):
            module(tasks=TASKS, **there.inputs()[2])
    finally:
        there.model.eval()
        there.model.config.layerdrop = before


def test_a_task_that_is_set_aside_is_run_as_the_base(world, tmp_path):
    there = world("parakeet")
    there.export(HierarchicalRecurrentAdapter(width=5), tmp_path / "adapter")
    exported = adapter_folder.read_adapter(tmp_path / "adapter")
    worse = gate.Decision("bob", "wer", 0.3, 0.2, None, None, None, True)
    library.write(tmp_path / "adapter", gate.gated(exported, [worse], suite="v", tolerance=0.0))
    module, inputs = adapted(there.model, tmp_path / "adapter"), there.inputs()[2]
    with torch.no_grad():
        found, plain = module(tasks=["bob", "ann"] * 2, **inputs), module(tasks=["__base__", "ann"] * 2, **inputs)
    torch.testing.assert_close(found, plain, rtol=0, atol=0)
    assert module.set_aside == {"bob"}


# --- LoRA under PEFT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["backbone", "task"])
@pytest.mark.parametrize("family", ["w2v-bert shaw", "w2v-bert rotary", "conformer rope", "parakeet", "lasr"])
def test_peft_gives_the_outputs_of_an_exported_lora(world, family, output, tmp_path):
    there = world(family)
    projections = ("attention.query", "attention.value", "ff1.up", "ff2.down", "convolution.gated")
    method = LowRankAdapter(rank=3, alpha=5.0, projections=projections, output=output)
    model = there.export(method, tmp_path / "adapter")
    location, target = str(there.backbone.files.folder), str(tmp_path / "peft")
    commands.specialize(str(tmp_path / "adapter"), "bob", output=target, backbone=location, peft=True)
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert len(written["target_modules"]) == len(projections) * published.LAYERS
    # Without the wrapper transformers lets padding leak into the convolutions of wav2vec2-conformers.
    x, lengths, inputs = there.inputs(ragged=not family.startswith("conformer"))
    expected, frames = there.in_jax(model, x, lengths, ["bob"] * 4)
    base = there._class().from_pretrained(there.folder, layerdrop=0.0).eval()
    with torch.no_grad():
        before = base(**inputs).logits
        found = peft.PeftModel.from_pretrained(base, str(tmp_path / "peft")).eval()(**inputs).logits
    assert (found - before).abs().max() > 1e-2, "the adapter changes nothing"
    print(f"{family}, {output}: {agree(expected, frames, found):.1e}")


def test_what_peft_cannot_hold_is_refused(world, tmp_path):
    from hra_jax.convert import peft_export

    there = world("w2v-bert shaw")
    files, hra = backbone_folder.load(str(there.backbone.files.folder)), HierarchicalRecurrentAdapter(width=5)
    there.export(hra, tmp_path / "hra")
    with pytest.raises(UserError, match="allowed: adapters of the method 'lora'"):
        peft_export.write(tmp_path / "peft", adapter_folder.read_adapter(tmp_path / "hra"), "bob", hra, files)
    own = LowRankAdapter(rank=2, output="characters", output_size=7)
    there.export(own, tmp_path / "own")
    with pytest.raises(UserError, match="PEFT has no vocabulary per task"):
        peft_export.write(tmp_path / "peft", adapter_folder.read_adapter(tmp_path / "own"), "bob", own, files)
    with pytest.raises(UserError, match="not converted from a published model"):
        plain = LowRankAdapter(rank=2)
        there.export(plain, tmp_path / "plain")
        tiny = backbone_folder.load("builtin:tiny")
        peft_export.write(tmp_path / "peft", adapter_folder.read_adapter(tmp_path / "plain"), "bob", plain, tiny)
