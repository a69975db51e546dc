"""Configurations: every one resolves and is unchanged, and every kind of mistake is one line that names it."""

import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from hra_jax.config import keys
from hra_jax.config.files import (
    config_difference,
    config_from_json,
    config_to_json,
    find_config,
    flatten_config,
    load_config,
    ready_made_names,
    validate_config,
)
from hra_jax.errors import UserError

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIGS = ready_made_names()
SUITES = ready_made_names(kind="suites")


def golden_text(config: ConfigDict) -> str:
    return "".join(f"{key} = {value!r}\n" for key, value in flatten_config(config).items())


def check_golden(path: Path, config: ConfigDict) -> None:
    if os.environ.get("HRA_UPDATE_GOLDENS") == "1":
        path.write_text(golden_text(config))
    assert path.exists(), f"{path.name} is missing: run this test with HRA_UPDATE_GOLDENS=1 and read what it writes"
    assert golden_text(config) == path.read_text(), "run this test with HRA_UPDATE_GOLDENS=1 if the change is meant"


def error_of(config: ConfigDict) -> str:
    """The message that `validate` gives, which must be one line."""
    with pytest.raises(UserError) as caught:
        validate_config(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(key: str, value: object) -> ConfigDict:
    config = load_config("base").unlock()
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_valid_locked_and_as_its_golden_dump(name):
    config = load_config(name)
    validate_config(config)
    assert config.is_locked
    check_golden(GOLDENS / f"{name}.txt", config)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_is_as_its_golden_dump(name):
    config = load_config(name, kind="suites")
    assert config.name == name
    check_golden(GOLDENS / "suites" / f"{name}.txt", config)


def test_no_golden_dump_is_left_of_a_config_that_is_gone():
    assert sorted(path.stem for path in GOLDENS.glob("*.txt")) == CONFIGS
    assert sorted(path.stem for path in (GOLDENS / "suites").glob("*.txt")) == SUITES


def test_rules_cover_exactly_the_keys_of_base():
    assert set(keys.rules()) == set(flatten_config(load_config("base")))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_other_config_names_the_exact_command(name):
    text = find_config(name).read_text()
    assert name == "base" or f"python -m hra_jax.train --config {name} " in text


def test_names_and_paths_resolve_to_the_same_file(tmp_path, monkeypatch):
    by_name = find_config("quickstart")
    assert find_config(str(by_name)) == by_name
    assert find_config("suites/hard") == find_config("hard", kind="suites")
    assert find_config("suites/hard", kind="suites") == find_config("hard", kind="suites")
    # A folder of the same name (a work directory, say) is in nobody's way.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert find_config("quickstart") == by_name


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("quickstrat", "configs", "'quickstart'"),
        ("configs/fsd.py", "configs", "'fsdd'"),
        ("../base", "configs", "'base'"),
        ("fsd", "suites", "'fsdd'"),
        ("nothing-like-it", "suites", "fsdd, fsdd_heldout, fsdd_validation"),
    ],
)
def test_an_unknown_name_is_one_line_with_near_matches(tmp_path, monkeypatch, name, kind, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_config(name, kind=kind)
    message = str(caught.value)
    assert repr(name) in message and told in message and "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("steps", 0, "at least 1"),
        ("steps", 1.5, "an integer"),
        ("steps", True, "an integer"),
        ("seed", -1, "at least 0"),
        ("method", "adaptor", "did you mean 'adapter'?"),
        ("remat", "some", "'none', 'dots', 'full'"),
        ("backbone", "", "not empty"),
        ("backbone_dtype", "float16", "'bfloat16'"),
        ("pretrain.size", "huge", "'tiny'"),
        ("adapter.name", "peft", "'hra'"),
        ("hra.head", "mlp", "'ffn'"),
        ("data.normalizer", "basics", "did you mean 'basic'?"),
        ("data.synthetic", "hrad", "did you mean 'hard'?"),
        ("data.strict", 1, "True or False"),
        ("data.sources", (("a", "m.jsonl"),), "(name, source, rate)"),
        ("data.sources", (("a", "m.jsonl", 0.0),), "above 0"),
        ("data.sources", (("a", "m.jsonl", "equal"),), "'proportional'"),
        ("data.sources", (("a", "m.jsonl", 1.0), ("a", "n.jsonl", 1.0)), "distinct"),
        ("data.tasks", ("a", "a"), "distinct"),
        ("data.tasks", ("__base__",), "reserved"),
        ("data.max_seconds", 99.0, "the last of batch.buckets"),
        ("data.temperature", 0.0, "a number of at least 0.1"),
        ("data.cap_rows", -1, "an integer of at least 0"),
        ("batch.buckets", (), "at least one"),
        ("batch.buckets", (2.0, 1.0), "ascending"),
        ("batch.seconds", float("inf"), "a number"),
        ("augment.noise_probability", 1.5, "at most 1"),
        ("augment.noise_snr_db", (20.0, 10.0), "low <= high"),
        ("augment.telephone_low_hz", (0.0, 300.0), "0 < low <= high"),
        ("optimizer.learning_rate", float("nan"), "a number"),
        ("optimizer.schedule", "linear", "'cosine', 'constant'"),
        ("eval.suite", "hrad", "did you mean 'hard'?"),
        ("export.step", "first", "'last', 'best'"),
        ("export.step", "best", "eval.select_suite"),
        ("mesh.data", 0, "or -1"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_key_value_and_what_is_allowed(key, value, told):
    message = error_of(changed(key, value))
    assert f"config.{key} is {value!r}" in message
    assert told in message


SHARED, PIECES = {"adapter.output": "shared_characters"}, {"adapter.output_pieces": 64}
BEST = {"export.step": "best_per_task", "eval.select_suite": "hard"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        # Shared by the tasks and trained: a controller, an output layer.
        (BEST, "export.step is 'best_per_task'; allowed: 'last', 'best' where"),
        (BEST | SHARED, "export.step is 'best_per_task'; allowed: 'last', 'best' where"),
        (BEST | SHARED | {"adapter.name": "lora"}, "export.step is 'best_per_task'; allowed: 'last', 'best' where"),
        (BEST | {"adapter.name": "lora"}, None),
        (BEST | {"adapter.train": "tasks"}, None),
        (BEST | SHARED | {"adapter.train": "tasks", "adapter.start": "there"}, None),
        # A new output layer that would not train.
        (SHARED | {"adapter.train": "tasks"}, "adapter.train is 'tasks'; allowed: 'all' where config.adapter.start is"),
        ({"adapter.output": "characters", "adapter.train": "tasks"}, None),
        ({"adapter.output_size": 9}, "'characters', 'sentencepiece', 'shared_characters' or 'shared_sentencepiece'"),
        (SHARED | {"adapter.output_size": 9}, None),
        # Numbers of pieces that nothing would read.
        (PIECES, "output_pieces is 64; allowed: 128 unless config.adapter.output is 'sentencepiece' or 'shared_sent"),
        (PIECES | SHARED, "adapter.output_pieces is 64; allowed: 128 unless"),
        (PIECES | {"adapter.output": "sentencepiece"}, None),
        (PIECES | {"adapter.output": "shared_sentencepiece"}, None),
        (PIECES | {"adapter.output": "sentencepiece", "adapter.start": "there"}, "and config.adapter.start is ''"),
        ({"adapter.output": "sentencepiece", "adapter.start": "there"}, None),
        # Rates where tasks take turns.
        ({"data.draw": "tasks"}, None),
        ({"data.draw": "tasks", "data.groups": "accent"}, "config.data.groups is 'accent'; allowed: '' where config."),
        ({"data.draw": "tasks", "data.temperature": 2.0}, "data.temperature is 2.0; allowed: 1.0 where config.data.d"),
        ({"data.draw": "tasks", "data.cap_rows": 9}, "data.cap_rows is 9; allowed: 0 where config.data.draw is 'task"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(changes, told):
    config = load_config("base").unlock()
    config.update_from_flattened_dict(changes)
    if told is None:
        validate_config(config)
    else:
        assert told in error_of(config)


def test_an_unknown_and_a_missing_key_are_named():
    config = load_config("base").unlock()
    config.optimizer.learnig_rate = 1e-3
    assert "'optimizer.learnig_rate'; did you mean 'optimizer.learning_rate'" in error_of(config)
    config = load_config("base").unlock()
    del config.batch["seconds"]
    assert "'batch.seconds' is missing" in error_of(config)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("config.stpes = 1", "unknown key 'stpes'; did you mean 'steps'"),
        ("config.optimzer.b1 = 0.5", "unknown key 'optimzer'; did you mean 'optimizer'"),
        ("config.steps = 'many'", "many"),
        ("config.steps = ", "SyntaxError"),
        ("config = 3", "returned int"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line_that_names_the_file(tmp_path, line, told):
    path = tmp_path / "mine.py"
    path.write_text(
        "from hra_jax import config as configs\n\n\ndef get_config():\n"
        f"    config = configs.load('base')\n    {line}\n    return config\n"
    )
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    message = str(caught.value)
    assert str(path) in message and told in message and "\n" not in message


@pytest.mark.parametrize("name", CONFIGS)
def test_json_gives_the_same_configuration_back(name):
    config = load_config(name)
    again = config_from_json(config_to_json(config))
    assert flatten_config(again) == flatten_config(config)
    assert again.is_locked
    validate_config(again)


def test_stored_text_that_is_no_configuration_is_refused():
    for text in ("{", "[1]"):
        with pytest.raises(UserError):
            config_from_json(text)


def test_difference_lists_both_values_outside_of_what_may_change():
    old, new = load_config("quickstart"), load_config("quickstart")
    assert config_difference(old, new) == []
    new.steps = 999
    new.eval.every_steps = 7
    new.checkpoint.keep_latest = 3
    new.profile.start_step = 3
    new.mesh.fsdp = 2
    new.distributed.heartbeat_seconds = 5
    new.optimizer.max_skipped_steps = 77
    assert config_difference(old, new) == []
    new.optimizer.learning_rate = 0.5
    new.data.tasks = ("a",)
    rate = old.optimizer.learning_rate
    assert config_difference(old, new) == ["data.tasks: () -> ('a',)", f"optimizer.learning_rate: {rate} -> 0.5"]


def test_difference_counts_a_key_that_one_side_lacks():
    old, new = load_config("base").unlock(), load_config("base")
    del old.data["threads"]
    assert config_difference(old, new) == [f"data.threads: (absent) -> {new.data.threads}"]


def test_difference_survives_storage_as_json():
    config = load_config("fsdd")
    assert config_difference(config_from_json(config_to_json(config)), config) == []
