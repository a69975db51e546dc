"""Every key: its default stands once, and its choices are those of the code that uses the value."""

import ast
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from reference import defaults

from hra_jax.adapters import controllers, methods, weights
from hra_jax.adapters.base import Adapter
from hra_jax.adapters.heads import HEADS
from hra_jax.config import keys, renamed
from hra_jax.config.files import config_from_json, flatten_config, load_config, validate_config
from hra_jax.config.settings import Setting, check_settings, settings_of
from hra_jax.errors import UserError
from hra_jax.models import conformer, dtypes
from hra_jax.models.encoder_config import named_size
from hra_jax.text.normalization import normalize_text
from hra_jax.training.optimizer import OptimizerConfig, learning_rate

TESTS = Path(__file__).parents[1]
LIBRARY = sorted((TESTS.parent / "hra_jax").rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in LIBRARY}
SETTINGS = keys.settings()
CHOICES = {key: setting.rule.choices() for key, setting in SETTINGS.items() if setting.rule.choices is not None}


def instance(key: str, value: Any) -> Any:
    """The class of the key's group with one value of its own, made as the code makes it."""
    group, _, name = key.rpartition(".")
    cls = keys.groups()[group]
    more = {field.name: 1 for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING}
    return cls(**more, **{name: value})


def refused(function: Callable[[Any], Any], value: Any) -> str:
    with pytest.raises(UserError) as caught:
        function(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def words(message: str, *, but: str) -> set[str]:
    """The quoted words of a message, without the value that it is about."""
    return set(re.findall(r"'([^']*)'", message)) - {but}


def golden() -> dict[str, str]:
    lines = (TESTS / "goldens" / "base.txt").read_text().splitlines()
    return dict(line.split(" = ", 1) for line in lines)


# --- Defaults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", keys.groups())
def test_defaults_of_class_base_and_golden_dump_are_the_same_and_allowed(group):
    cls, base, stored = keys.groups()[group], flatten_config(load_config("base")), golden()
    found = {key: setting for key, setting in SETTINGS.items() if key.rpartition(".")[0] == group}
    assert found
    for key, setting in found.items():
        made = getattr(instance(key, setting.default), setting.name)
        assert made == setting.default == base[key], key
        assert repr(made) == stored[key]
        assert setting.rule.accepts(made), key
        assert type(made) is type(getattr(cls, setting.name))
    fields = [field for field in dataclasses.fields(cls) if field.name not in Adapter.__dataclass_fields__]
    plain = {field.name for field in fields if "setting" not in field.metadata}
    assert plain == ({"steps"} if group == "optimizer" else set())


def test_base_and_its_golden_dump_have_exactly_the_keys_of_the_table():
    assert set(flatten_config(load_config("base"))) == set(SETTINGS) == set(golden())
    validate_config(load_config("base"))


def test_a_group_of_a_configuration_is_an_instance_with_its_values():
    config = load_config("base").unlock()
    config.optimizer.clip = 3.5
    found = keys.group(config, "optimizer", steps=7)
    assert found == OptimizerConfig(steps=7, clip=3.5)
    assert keys.group(config, "").steps == config.steps
    config.optimizer.clip = -1.0
    assert "optimizer.clip = -1.0: allowed: a number of at least 0" in refused(
        lambda name: keys.group(config, name, steps=7), "optimizer"
    )
    config.optimizer.clip, config.optimizer.clpi = 1.0, 2.0
    assert "'optimizer.clpi'" in refused(lambda name: keys.group(config, name, steps=7), "optimizer")


def test_nothing_that_is_stored_follows_a_change_of_defaults(monkeypatch):
    text = (TESTS / "fixtures" / "workdir" / "config.json").read_text()
    before, base = flatten_config(config_from_json(text, notify=False)), flatten_config(load_config("base"))
    defaults.turn_over(monkeypatch, keys.groups().values())
    after = flatten_config(load_config("base"))
    assert [key for key in base if after[key] == base[key]] == []  # every default has changed indeed
    assert flatten_config(config_from_json(text, notify=False)) == before


# --- Rules ------------------------------------------------------------------------------------------------------------

FOREIGN = "of no list"


@pytest.mark.parametrize("key", CHOICES)
def test_class_and_configuration_allow_the_same_choices_and_refuse_a_foreign_word(key):
    assert len(CHOICES[key]) == len(set(CHOICES[key])) > 1
    for choice in CHOICES[key]:
        assert getattr(instance(key, choice), key.rpartition(".")[2]) == choice
    config = load_config("base").unlock()
    config.update_from_flattened_dict({key: FOREIGN})
    messages = [refused(validate_config, config), refused(lambda value: instance(key, value), FOREIGN)]
    for message in messages:
        assert key in message
        assert words(message, but=FOREIGN) == set(CHOICES[key])


def _headed(kind: str) -> Any:
    head = HEADS[kind]()

    def apply(key: jax.Array, state: jax.Array) -> jax.Array:
        return head.apply(weights.draw(head.weights(width=4, state=5, hidden=3), key), state)

    return jax.eval_shape(apply, jax.random.key(0), jnp.zeros((1, 5)))


def _controlled(recurrence: str, activation: str = "relu") -> Any:
    carry = jnp.zeros((1, controllers.carry_width(recurrence, 4)))

    def advance(key: jax.Array, x: jax.Array) -> Any:
        params = controllers.new_weights(recurrence, key, inputs=3, width=4)
        return controllers.advance(params, x, carry, recurrence, activation)

    return jax.eval_shape(advance, jax.random.key(0), jnp.zeros((1, 3)))


# What is done with a value in the end.
USED: dict[str, Callable[[str], Any]] = {
    "adapter.name": lambda value: methods.from_settings({"name": value}),
    "adapter.output": lambda value: Adapter(output=value, output_size=0 if value in ("backbone", "task") else 3),
    "backbone_dtype": dtypes.compute_dtype,
    "data.normalizer": lambda value: normalize_text("A word.", value),
    "optimizer.schedule": lambda value: learning_rate(OptimizerConfig(steps=9, schedule=value))(0),
    "pretrain.size": lambda value: named_size(value, 9),
}


@pytest.mark.parametrize("key", USED)
def test_every_choice_works_where_it_is_used_and_a_foreign_word_is_refused_there_with_the_same_list(key):
    for choice in CHOICES[key]:
        USED[key](choice)
    message = refused(USED[key], FOREIGN)
    assert set(CHOICES[key]) <= set(re.findall(r"\w+", message.replace(FOREIGN, "")))


def test_every_recurrence_activation_head_and_policy_works():
    for recurrence in CHOICES["hra.recurrence"]:
        _controlled(recurrence)
    for activation in CHOICES["hra.activation"]:
        _controlled("rnn", activation)
    for head in CHOICES["hra.head"]:
        _headed(head)
    assert set(CHOICES["remat"]) == set(conformer.REMAT_POLICIES)
    for dtype in CHOICES["export.dtype"]:
        jnp.dtype(dtype)


def listed(node: ast.AST) -> frozenset[str]:
    """The words of a literal tuple, list, set, or of the keys of a dict; empty where there are others."""
    elements = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    found = [element.value for element in elements if isinstance(element, ast.Constant)]
    return frozenset(found) if len(found) == len(elements) and all(isinstance(w, str) for w in found) else frozenset()


def test_every_list_of_choices_is_written_down_in_one_file_alone():
    places: dict[frozenset[str], set[str]] = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)) and len(words := listed(node)) > 1:
                places.setdefault(words, set()).add(str(path.relative_to(TESTS.parent)))
    lists = {frozenset(choices) for choices in CHOICES.values()}
    twice = {key: places.get(frozenset(choices), set()) for key, choices in CHOICES.items()}
    assert {key: files for key, files in twice.items() if len(files) > 1} == {}
    assert sum(words in places for words in lists) > 6  # they are found where they stand


# --- Meanings ---------------------------------------------------------------------------------------------------------


def test_every_key_has_a_meaning_and_a_line_of_documentation():
    text = keys.documentation()
    for key, setting in SETTINGS.items():
        assert len(setting.meaning) > 3 and "\n" not in setting.meaning, key
        assert text.count(f"\n| `{key}` | `{setting.default!r}` | ") == 1
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(SETTINGS) and all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)


def test_every_setting_is_read_somewhere():
    read = {node.attr for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    texts = {node.value for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert [key for key in SETTINGS if key.rpartition(".")[2] not in read | texts] == []


def test_settings_check_themselves_and_name_their_group():
    @dataclasses.dataclass(frozen=True)
    class Some:
        plain: int = 3

    check_settings(Some(), "some")
    assert list(settings_of(Some)) == []
    setting = next(settings_of(OptimizerConfig))
    assert isinstance(setting, Setting) and setting.name == "learning_rate"
    assert refused(lambda value: OptimizerConfig(steps=1, learning_rate=value), 0.0) == (
        "optimizer.learning_rate = 0.0: allowed: a number above 0"
    )


def test_no_renamed_key_is_a_key_and_each_has_a_new_one_or_none():
    assert not set(renamed.RENAMED) & set(SETTINGS)
    assert {entry.new for entry in renamed.RENAMED.values()} - {None} <= set(SETTINGS)


def test_every_key_that_format_1_lacks_has_the_meaning_that_its_absence_had():
    text = (TESTS / "fixtures" / "workdir" / "config.json").read_text()
    stored = flatten_config(json.loads(text))
    # The settings of methods that the run did not use never act.
    idle = set(keys.method_groups()) - {key.rpartition(".")[0] for key in stored}
    lacking = {key for key in SETTINGS if key not in stored and key.rpartition(".")[0] not in idle}
    assert lacking == set(renamed.MEANT_BEFORE)
