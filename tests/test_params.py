"""What methods cost: against sums done by hand, real weights, states and files, and as the command prints it."""

import functools
import io
import itertools
import json
import shutil
import struct
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
import rich.console
from reference import micro as world
from reference import tiny

from hra_jax import params
from hra_jax.adapters import adapter_folder, initial
from hra_jax.adapters.controllers import RECURRENCES
from hra_jax.config.files import config_to_json, load_config
from hra_jax.config.keys import group
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.models.encoder_config import EncoderConfig, named_size
from hra_jax.models.stored_settings import from_json, to_json
from hra_jax.run import foundation
from hra_jax.training import train_state

# The tiny and the usm_2b encoder, by hand: D width, F feed-forward, L layers, V vocabulary.
D, F, L, V = 128, 512, 8, 32
TINY = {"backbone": "abstract", "pretrain.vocabulary": "sentencepiece", "pretrain.sentencepiece_size": V}
CONTROLLERS = {  # reading width I and own width R
    "none": lambda i, r: r * i + r,
    "indrnn": lambda i, r: r * i + r + r,
    "rnn": lambda i, r: r * i + r * r + r,
    "gru": lambda i, r: 3 * (r * i + r * r + r) + r,
    "mgu": lambda i, r: 2 * (r * i + r * r + r) + r,
    "lstm": lambda i, r: 4 * (r * i + r * r + r),
}
HEADS = {  # R and H
    "linear": lambda r, h: D * r + D,
    "ffn": lambda r, h: h * r + h + D * h + D,
    "lowrank": lambda r, h: h * r + D * h + D,
}
# Of a layer: norm, up and down of both feed-forward modules; attention; convolution; final norm.
BIASES = 2 * (D + F + D) + 5 * D + (D + 2 * D + D + D + D) + D


@pytest.fixture(autouse=True, scope="module")
def shapes_of_a_geometry_once():
    """The backbone is traced again in every call otherwise, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbone_folder, "abstract_params", functools.cache(backbone_folder.abstract_params))
        yield


def adapter_of(settings):
    return params.adapters.from_config(
        group(settings, "adapter"), params.adapters.own_settings(settings, settings.adapter.name)
    )


def config(start: str = "base", /, **changes):
    """A configuration; `changes` has its keys with `__` for the dots."""
    loaded = load_config(start).unlock()
    flat = {key.replace("__", "."): value for key, value in changes.items()}
    with loaded.ignore_type():
        loaded.update_from_flattened_dict((TINY if start == "base" else {}) | flat)
    return loaded.lock()


def counts(found: dict, method: str) -> tuple[int, int]:
    entry = found["methods"][method]
    return entry["shared_parameters"], entry["parameters_per_task"]


def refused(settings, tasks=(1,), methods=None) -> str:
    with pytest.raises(UserError) as caught:
        params.account(settings, tasks, methods)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- Counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recurrence", "head"), list(itertools.product(CONTROLLERS, HEADS)))
def test_hra_costs_what_controller_and_head_have_by_hand(recurrence, head):
    r, h, layers = 6, 5, (1, 4, 6)
    settings = {"hra__width": r, "hra__head_width": h, "hra__recurrence": recurrence, "hra__head": head}
    shared, task = CONTROLLERS[recurrence](D, r), HEADS[head](r, h)
    cases = {
        (): task,
        (("hra__head_per_layer", True),): L * task,
        (("hra__head_per_layer", True), ("adapter__layers", layers)): 3 * task,
        (("adapter__layers", layers), ("adapter__output", "task")): task + V * D + V,
    }
    for further, expected in cases.items():
        found = params.account(config(**settings, **dict(further)), [3])
        assert counts(found, "hra") == (shared, expected)


@pytest.mark.parametrize(
    ("reads", "width"), [("input", D), ("ff1.up", F), ("convolution.gated", 2 * D), ("attention.output", D)]
)
def test_a_controller_has_the_width_of_what_it_reads(reads, width):
    found = params.account(config(hra__reads=reads, hra__width=6), [3])
    assert counts(found, "hra") == (6 * width + 6 + 6, 6 * D + D)


@pytest.mark.parametrize("layers", [(), (0, 7)])
def test_the_other_methods_cost_what_they_have_by_hand(layers):
    settings = config(
        residual__width=7,
        lora__rank=3,
        lora__projections=("attention.query", "ff2.down", "convolution.gated"),
        adapter__layers=layers,
    )
    found = params.account(settings, [3], params.known_methods())
    n = len(layers) or L
    assert counts(found, "residual") == (0, n * (2 * D + D * 7 + 7 + 7 * D + D))
    assert counts(found, "lora") == (0, n * 3 * ((D + D) + (F + D) + (D + 2 * D)))
    assert counts(found, "bitfit") == (0, n * BIASES)
    assert counts(found, "output") == (0, V * D + V)
    backbone = found["backbone"]["parameters"]
    assert counts(found, "full") == (0, backbone) and counts(found, "full_joint") == (backbone, 0)


def test_usm_2b_costs_what_its_geometry_says_by_hand():
    found = params.account(load_config("usm_2b_hra"), [1, 100_000], params.known_methods())
    d, f = 1536, 6144
    feed_forward = 2 * d + d * f + f + f * d + d
    attention = 2 * d + 4 * (d * d + d) + d * d + 2 * d
    convolution = 2 * d + 2 * d * d + 2 * d + 5 * d + d + 2 * d + d * d + d
    layers = 32 * (2 * feed_forward + attention + convolution + 2 * d)
    subsampling = 3 * 3 * 256 + 256 + 3 * 3 * 256 * 256 + 256 + 32 * 256 * d + d
    backbone = layers + subsampling + 4096 * d + 4096
    assert found["backbone"]["parameters"] == backbone
    assert counts(found, "hra") == (256 * d + 256 + 256, 256 * d + d) == (393_728, 394_752)
    assert counts(found, "residual") == (0, 32 * (2 * d + d * 64 + 64 + 64 * d + d))
    assert counts(found, "lora") == (0, 32 * 2 * 4 * (d + d))
    assert counts(found, "bitfit") == (0, 32 * (2 * (d + f + d) + 5 * d + 6 * d + d))
    assert counts(found, "output") == (0, 4096 * d + 4096)
    assert found["methods"]["full"]["costs"][1]["trainable_parameters"] == 100_000 * backbone


# Parameters of the backbones as in tests/convert/test_families.py, their width, that of the controller, new outputs.
@pytest.mark.parametrize(
    ("start", "backbone", "d", "r", "outputs"),
    [
        ("w2v_bert_hra", 580_493_121, 1024, 256, 64),
        ("parakeet_hra", 1_062_454_273, 1024, 256, 0),
        ("medasr_hra", 105_256_704, 512, 128, 0),
    ],
)
def test_a_published_model_costs_what_its_geometry_says_by_hand(start, backbone, d, r, outputs):
    settings = load_config(start)
    found = params.account(settings, [1, 100], ["hra", "full"])
    assert (found["backbone"]["name"], found["backbone"]["parameters"]) == (settings.backbone, backbone)
    # One layer of outputs for all tasks, where the model was published without.
    shared, per_task = r * d + r + r + outputs * (d + 1), r * d + d
    assert counts(found, "hra") == (shared, per_task) and counts(found, "full") == (0, backbone)
    trained = [cost["trainable_parameters"] for cost in found["methods"]["hra"]["costs"]]
    assert trained == [shared + per_task, shared + 100 * per_task]


@pytest.mark.parametrize("start", ["quickstart", "usm_2b_hra"])
@pytest.mark.parametrize("method", list(params.adapters.METHODS))
def test_counts_are_those_of_the_shapes_of_new_weights(start, method):
    layers = () if method == "output" else (0, 3)
    settings = config(start, adapter__name=method, adapter__layers=layers)
    found = params.account(settings, [3])
    encoder = from_json(EncoderConfig, found["backbone"]["encoder"])
    adapter = adapter_of(settings)
    weights = jax.eval_shape(lambda key: initial.new_weights(adapter, key, encoder, 3), jax.random.key(0))
    shared, per_task = counts(found, method)
    assert (size(weights["shared"]), size(weights["tasks"])) == (shared, 3 * per_task)


def test_every_cost_is_affine_in_the_tasks():
    tasks = [1, 2, 1000, params.MOST_TASKS]
    found = params.account(config(adapter__output="task"), tasks, params.known_methods())
    whole = found["backbone"]["parameters"]
    for name, entry in found["methods"].items():
        shared, per_task = counts(found, name)
        first, second, *_ = entry["costs"]
        for count, cost in zip(tasks, entry["costs"], strict=True):
            assert cost["tasks"] == count and cost["trainable_parameters"] == shared + count * per_task
            for key in ("export_bytes", "optimizer_bytes"):
                assert cost[key] == first[key] + (count - 1) * (second[key] - first[key])
            assert cost["of_backbone"] == cost["trainable_parameters"] / whole
            assert cost["of_full"] == cost["trainable_parameters"] / (count * whole)


def test_a_shared_part_that_is_not_trained_is_told_but_not_counted():
    found = params.account(config(adapter__train="tasks", hra__width=6), [10])["methods"]["hra"]
    (cost,) = found["costs"]
    shared, per_task = 6 * D + 6 + 6, 6 * D + D
    assert (found["shared_parameters"], found["shared_is_trained"]) == (shared, False)
    assert cost["trainable_parameters"] == 10 * per_task
    assert cost["export_bytes"] == 4 * (shared + 10 * per_task)  # a reader needs it all the same
    assert cost["optimizer_bytes"] == 10 * (8 * per_task + 4)


def test_the_formula_and_its_numbers_give_the_counts():
    settings = config(hra__reads="ff1.up", hra__head="ffn", hra__head_per_layer=True, hra__recurrence="gru")
    for entry in params.account(settings, [1], params.known_methods())["methods"].values():
        for part, key in (("shared", "shared_parameters"), ("task", "parameters_per_task")):
            assert eval(entry["formula"][part], {}, dict(entry["letters"])) == entry[key]
            assert eval(entry["filled"][part], {}) == entry[key]


def test_a_formula_that_is_wrong_does_not_get_past_the_shapes(monkeypatch):
    monkeypatch.setattr(RECURRENCES["indrnn"], "formula", "R * (D + 1)")
    with pytest.raises(UserError, match=r"method 'hra' counts .* shared parameters as 'R \* \(D \+ 1\)', but has"):
        params.account(config(), [1])


# --- Bytes ------------------------------------------------------------------------------------------------------------


def tensor_bytes(path: Path) -> int:
    """The size of a safetensors file without its header."""
    content = path.read_bytes()
    return len(content) - 8 - struct.unpack("<Q", content[:8])[0]


def write_rows(folder: Path, settings, encoder, *, tasks: int) -> None:
    adapter = adapter_of(settings)
    adapter_folder.write_adapter(
        folder,
        method=params.adapters.settings(adapter),
        weights=jax.device_get(initial.new_weights(adapter, jax.random.key(0), encoder, tasks)),
        tasks=[{"name": f"task {row}", "row": row} for row in range(tasks)],
        backbone={"name": "tiny", "fingerprint": "f00d"},
        vocabulary={"type": "characters", "characters": "ab"},
        accounting={"shared_parameters": 1, "parameters_per_task": 1, "backbone_parameters": 1},
    )


@pytest.mark.parametrize("output", ["backbone", "task"])
def test_an_exported_adapter_has_the_bytes_besides_the_headers(tmp_path, micro, output):
    settings = micro.config(adapter__output=output, hra__head="ffn")
    found = params.account(settings, [5])
    encoder = from_json(EncoderConfig, found["backbone"]["encoder"])
    write_rows(tmp_path, settings, encoder, tasks=5)
    assert tensor_bytes(tmp_path / "adapter_model.safetensors") == found["methods"]["hra"]["costs"][0]["export_bytes"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exported_backbone_has_the_bytes_besides_the_header(tmp_path, dtype):
    kept = {"features": tiny.FEATURES, "encoder": tiny.ENCODER, "vocabulary": {}, "info": {"name": "tiny"}}
    backbone_folder.save(tmp_path, tiny.random_params(tiny.FEATURES, tiny.ENCODER), dtype=dtype, **kept)
    settings = config(method="full", backbone=str(tmp_path), export__dtype=dtype)
    found = params.account(settings, [3])["methods"]
    assert list(found) == ["full", "full_joint"]
    expected = tensor_bytes(tmp_path / "model.safetensors")
    assert [entry["costs"][0]["export_bytes"] for entry in found.values()] == [3 * expected, expected]


def state_bytes(weights, settings) -> int:
    state = train_state.create(
        weights, group(settings, "optimizer", steps=settings.steps), train=settings.adapter.train
    )
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state.optimizer))


@pytest.mark.parametrize("train", ["all", "tasks"])
@pytest.mark.parametrize("method", list(params.adapters.METHODS))
def test_the_optimizer_holds_the_bytes(micro, method, train):
    settings = micro.config(adapter__name=method, adapter__train=train)
    found = params.account(settings, [5])
    encoder = from_json(EncoderConfig, found["backbone"]["encoder"])
    weights = initial.new_weights(adapter_of(settings), jax.random.key(0), encoder, 5)
    (cost,) = found["methods"][method]["costs"]
    assert cost["optimizer_bytes"] == state_bytes(weights, settings)
    counters = 4 * 5 + (8 if train == "all" else 0)  # of the rows; of Adam and of the schedule, whatever is shared
    assert cost["optimizer_bytes"] == 8 * cost["trainable_parameters"] + counters


def test_the_optimizer_of_a_whole_backbone_holds_the_bytes(micro):
    settings = micro.config(method="full")
    found = params.account(settings, [5])["methods"]
    expected = state_bytes({"backbone": foundation.load(settings.backbone).files.params}, settings)
    assert found["full_joint"]["costs"][0]["optimizer_bytes"] == expected
    assert found["full"]["costs"][0]["optimizer_bytes"] == 5 * expected


# --- The backbone -----------------------------------------------------------------------------------------------------


def test_no_weights_are_read(tmp_path, monkeypatch):
    expected = params.account(config(backbone="builtin:tiny"), [4])
    shutil.copy(backbone_folder.resolve("builtin:tiny") / "backbone.json", tmp_path)
    monkeypatch.setattr(backbone_folder, "load", None)
    found = params.account(config(backbone=str(tmp_path)), [4])
    assert found["methods"] == expected["methods"]
    assert found["backbone"] == expected["backbone"] | {"name": str(tmp_path)}


def test_a_folder_has_the_number_of_weights_that_are_in_it():
    weights = backbone_folder.load("builtin:tiny").parameters
    assert params.account(config(backbone="builtin:tiny"), [1])["backbone"]["parameters"] == weights


def test_an_abstract_backbone_has_the_geometry_that_pretraining_would_give():
    found = params.account(config(pretrain__size="small", pretrain__sentencepiece_size=77), [1])["backbone"]
    features, encoder = named_size("small", 77)
    assert (found["name"], found["encoder"]) == ("abstract small", to_json(encoder))
    assert found["features"] == to_json(features)


def test_the_configuration_stays_as_it_was():
    settings = config()
    before = config_to_json(settings)
    params.account(settings, [1], ["lora", "full"])
    assert config_to_json(settings) == before and settings.is_locked


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "tasks", "methods", "told"),
    [
        ({}, [0], None, ("tasks: 0", "from 1 to 2147483647")),
        ({}, [2**31], None, ("2147483648", "from 1")),
        ({}, ["10"], None, ("'10'", "integers")),
        ({}, [], None, ("tasks: none", "at least one")),
        ({}, [1, 10, 1], None, ("1,10,1", "once")),
        ({}, [1], ["lroa"], ("'lroa'", "did you mean 'lora'")),
        ({}, [1], ["hra", "all"], ("'all'",)),
        ({}, [1], ["hra", "hra"], ("hra,hra", "once")),
        ({}, [1], [], ("methods: none",)),
        ({"method": "pretrain"}, [1], None, ("'pretrain'", "'adapter', 'full'")),
        ({"pretrain.vocabulary": "characters"}, [1], None, ("'characters'", "pretrain.vocabulary=sentencepiece")),
        ({"backbone": "nowhere"}, [1], None, ("'nowhere'", "builtin:NAME")),
        ({"backbone": "builtin:big"}, [1], None, ("'builtin:big'", "builtin:tiny")),
        ({"adapter.layers": (8,)}, [1], None, ("(8,)", "0 to 7")),
        ({"lora.projections": ("query",)}, [1], ["lora"], ("'query'", "attention.query")),
        ({"hra.width": 0}, [1], None, ("config.hra.width is 0", "at least 1")),
    ],
)
def test_a_mistake_is_one_line_that_names_it(changes, tasks, methods, told):
    message = refused(config(**changes), tasks, methods)
    assert all(part in message for part in told), message


@pytest.mark.parametrize(
    ("content", "told"), [("{", "not JSON"), ("[1]", "'features'"), ('{"features": {}}', "'encoder'")]
)
def test_a_broken_backbone_folder_is_one_line_that_names_the_file(tmp_path, content, told):
    path = tmp_path / "backbone.json"
    path.write_text(content)
    message = refused(config(backbone=str(tmp_path)))
    assert str(path) in message and told in message


@pytest.mark.parametrize("name", ["abstract", "abstract:medasr"])
def test_training_on_an_abstract_backbone_is_refused(micro, tmp_path, name):
    with pytest.raises(UserError, match=f"^backbone = '{name}' has no weights; it is for hra_jax.params.*$") as caught:
        world.train(micro.config(backbone=name), tmp_path / "W")
    assert "\n" not in str(caught.value)


# --- The command ------------------------------------------------------------------------------------------------------


def printed(found: dict, *, width: int = 160) -> str:
    console = rich.console.Console(width=width, record=True, file=io.StringIO())
    params.print_table(found, console=console)
    return console.export_text()


def test_what_is_printed_has_formulas_and_every_cost():
    text = printed(params.account(config(hra__width=6), [1, 1000], ["hra", "full", "full_joint"]))
    assert (
        "hra: R * (D + 2) + tasks x (D * (R + 1)) = 6 * (128 + 2) + tasks x (128 * (6 + 1)) = 780 + tasks x 896" in text
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows[0][:5] == ["hra", "1", "780", "896", "1,676"]
    assert rows[1][:5] == ["hra", "1,000", "780", "896", "896,780"] and rows[1][7:] == ["3.59 MB", "7.18 MB"]
    assert [row[6] for row in rows[2:]] == ["100%", "100%", "100%", "0.1%"]
    assert "not trained" not in text
    assert "not trained" in printed(params.account(config(adapter__train="tasks"), [1]))


@pytest.mark.parametrize("name", ["w2v_bert_hra", "parakeet_hra", "medasr_hra"])
def test_all_methods_that_a_configuration_allows_are_counted(name, monkeypatch, capsys):
    flags = {"config": load_config(name), "tasks": ["1"], "methods": ["all"], "json": None, "plot": None}
    monkeypatch.setattr(params, "FLAGS", types.SimpleNamespace(**flags))
    params.main(["params"])
    out = capsys.readouterr().out
    without = name == "w2v_bert_hra"
    assert ("not counted: output, since adapter.output = 'shared_characters'" in out) == without
    assert ("\noutput: " in out) != without and "\nlora: " in out


def test_the_command_prints_and_writes_what_account_returns(tmp_path, command_env):
    json_path, plot = tmp_path / "new" / "params.json", tmp_path / "params.png"
    line = [sys.executable, "-m", "hra_jax.params", "--config", "quickstart", "--config.hra.width=8"]
    line += ["--tasks", "1,100", "--methods", "all", f"--json={json_path}", f"--plot={plot}"]
    done = subprocess.run(line, env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(json_path.read_text())
    expected = params.account(config("quickstart", hra__width=8), [1, 100], params.known_methods())
    assert found == json.loads(json.dumps(expected))
    assert "1,040 + tasks x 1,152" in done.stdout and "full, one for each task" in done.stdout
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and plot.stat().st_size < 100_000


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tasks": ["1", "ten"]}, "'ten'"),
        ({"tasks": ["-1"]}, "'-1'"),
        ({"methods": ["hra", "all"]}, "'all'"),
        ({"json": "."}, "--json='.' is a folder"),
        ({"plot": "a.jpg"}, "'a.jpg'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_writes_nothing(tmp_path, monkeypatch, given, told):
    monkeypatch.chdir(tmp_path)
    flags = {"config": config(), "tasks": ["1"], "methods": None, "json": "a.json", "plot": "a.png"} | given
    monkeypatch.setattr(params, "FLAGS", types.SimpleNamespace(**flags))
    with pytest.raises(UserError) as caught:
        params.main(["params"])
    assert told in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_published_is_what_the_command_gives_today():
    published = json.loads((Path(__file__).parent.parent / "benchmarks" / "results" / "params_usm_2b.json").read_text())
    tasks = [10**power for power in range(6)]
    assert published == json.loads(json.dumps(params.account(load_config("usm_2b_hra"), tasks, params.known_methods())))
