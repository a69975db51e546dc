"""Keys of earlier versions keep their meaning in files, flags and work directories, and each is told once."""

import json
from pathlib import Path

import pytest

from hra_jax.config import keys, renamed
from hra_jax.config.files import (
    config_from_json,
    config_to_json,
    flatten_config,
    load_config,
    stored_difference,
    validate_config,
)
from hra_jax.errors import UserError

STORED = Path(__file__).parents[1] / "fixtures" / "workdir" / "config.json"
ROWS, CONTROLLER, WHOLE = (f"optimizer.clip_{name}" for name in ("row", "controller", "norm"))
# {keys of a file: the new key with its value, or what the error says}
CASES = [
    ({"hra.dropout": 0.1}, {"adapter.dropout": 0.1}),
    ({"hra.dropout": 0.1, "lora.dropout": 0.2}, {"adapter.dropout": 0.1}),
    ({"hra.dropout": 0.1, "lora.dropout": 0.2, "adapter.name": "lora"}, {"adapter.dropout": 0.2}),
    ({"residual.dropout": 0.3, "adapter.name": "residual"}, {"adapter.dropout": 0.3}),
    # A value that never acted.
    ({"hra.dropout": 0.1, "adapter.name": "bitfit"}, {"adapter.dropout": 0.0}),
    ({"hra.dropout": 0.1, "method": "full"}, {"adapter.dropout": 0.0}),
    ({WHOLE: 4.0}, {"optimizer.clip": 1.0}),
    ({WHOLE: 4.0, ROWS: 3.0, "method": "full"}, {"optimizer.clip": 4.0}),
    # What nothing trains has no gradient to clip: LoRA shares nothing, and with adapter.train 'tasks' what is shared
    # stays as it is.
    ({ROWS: 0.5, "adapter.name": "lora"}, {"optimizer.clip": 0.5}),
    ({ROWS: 0.5, CONTROLLER: 2.0, "adapter.train": "tasks"}, {"optimizer.clip": 0.5}),
    ({ROWS: 0.5, CONTROLLER: 0.5}, {"optimizer.clip": 0.5}),
    (
        {ROWS: 0.5},
        "config.optimizer.clip_row is 0.5 and config.optimizer.clip_controller is 1.0, which are one key now",
    ),
    ({ROWS: 0.5, "adapter.name": "lora", "adapter.output": "shared_characters"}, "config.optimizer.clip_controller"),
    ({"export.from": "best"}, {"export.step": "best"}),
    ({"export.from": "first"}, "config.export.from is 'first'; allowed: 'last', 'best', 'best_per_task'"),
    ({"hra.dropout": 1.5}, "config.hra.dropout is 1.5; allowed: a number of at least 0 and at most 1"),
    ({"data.prefetch": 2, "export.license": "MIT", "export.per_task_files": True, "log.every_steps": 1}, {}),
]


def written(path: Path, changes: dict, *, base: str = "base") -> str:
    """A user's configuration file; returns its path."""
    statements = "".join(
        f"    config[{key.split('.')[0]!r}][{key.split('.')[1]!r}] = {value!r}\n"
        if "." in key
        else f"    config.{key} = {value!r}\n"
        for key, value in changes.items()
    )
    path.write_text(
        f"from hra_jax import config as configs\n\n\ndef get_config():\n    config = configs.load({base!r})\n"
        f"{statements}    return config\n"
    )
    return str(path)


@pytest.mark.parametrize(("changes", "expected"), CASES)
def test_an_old_configuration_file_keeps_its_meaning_with_a_line_for_each_old_key(tmp_path, capsys, changes, expected):
    file = written(tmp_path / "mine.py", changes)
    if isinstance(expected, str):
        with pytest.raises(UserError) as caught:
            load_config(file)
        assert expected in str(caught.value) and "\n" not in str(caught.value)
        return
    config = load_config(file)
    config_keys = set(flatten_config(config))
    assert config_keys == set(keys.rules()) and config.is_locked
    plain = {key: value for key, value in changes.items() if key not in renamed.RENAMED}
    assert flatten_config(config) == flatten_config(load_config("base")) | plain | expected
    told = capsys.readouterr().err.splitlines()
    old = [key for key in renamed.RENAMED if key in changes]
    assert [line.split()[0] for line in told] == [f"config.{key}" for key in old]
    for key, line in zip(old, told, strict=True):
        new = renamed.RENAMED[key].new
        assert f"is now config.{new}" in line if new else line.endswith("no longer does anything")


def test_files_that_start_from_files_with_old_keys_are_translated_once(tmp_path, capsys):
    first = written(tmp_path / "first.py", {"export.from": "last", "hra.dropout": 0.1}, base="quickstart")
    second = written(tmp_path / "second.py", {"hra.dropout": 0.2}, base=first)
    config = load_config(second)
    validate_config(config)
    assert (config.export.step, config.adapter.dropout) == ("last", 0.2)  # quickstart itself exports the best
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_file_may_mistype_neither_an_old_nor_a_new_key(tmp_path):
    for key, told in {"hra.dropot": "dropot", "optimizer.clip_rows": "clip_rows"}.items():
        with pytest.raises(UserError, match=told):
            load_config(written(tmp_path / "mine.py", {key: 0.1}))


# --- Work directories -------------------------------------------------------------------------------------------------


def old_json(**changes: object) -> str:
    """The stored config.json of version 0.1.0 with other values."""
    values = json.loads(STORED.read_text())
    for key, value in changes.items():
        *groups, name = key.split("__")
        node = values
        for group in groups:
            node = node[group]
        node[name] = value
    return json.dumps(values)


def test_a_stored_configuration_is_translated_and_tells_of_what_had_been_set(capsys, monkeypatch):
    monkeypatch.chdir(STORED.parents[1])  # where its suites are
    config = config_from_json(old_json())
    validate_config(config)
    assert config.is_locked and set(flatten_config(config)) == set(keys.rules())
    assert (config.adapter.dropout, config.optimizer.clip, config.export.step) == (0.1, 0.5, "best")
    assert len(capsys.readouterr().err.splitlines()) == len(renamed.RENAMED)
    quiet = {f"{key.replace('.', '__')}": entry.default for key, entry in renamed.RENAMED.items()}
    config_from_json(old_json(**quiet))
    config_from_json(old_json(), notify=False)
    assert capsys.readouterr().err == ""


def test_what_is_written_now_says_its_format_and_comes_back():
    config = load_config("quickstart")
    text = config_to_json(config)
    assert json.loads(text)["format"] == 2
    assert flatten_config(config_from_json(text)) == flatten_config(config)
    assert stored_difference(text, config) == []
    newer = json.dumps(json.loads(text) | {"format": 3})
    with pytest.raises(UserError, match="has format 3; allowed: at most 2"):
        config_from_json(newer)


def test_an_old_key_in_a_new_configuration_is_none():
    values = json.loads(config_to_json(load_config("base")))
    values["hra"]["dropout"] = 0.1
    with pytest.raises(UserError, match="'hra.dropout'"):
        validate_config(config_from_json(json.dumps(values)))


def test_an_old_run_is_continued_where_the_values_that_acted_are_the_same():
    config = config_from_json(old_json(), notify=False)
    assert stored_difference(old_json(lora__dropout=0.9, data__prefetch=7, export__license="MIT"), config) == []
    assert stored_difference(old_json(hra__dropout=0.9), config) == ["adapter.dropout: 0.9 -> 0.1"]
    changed = config.copy_and_resolve_references().unlock()
    changed.optimizer.clip = 2.0
    assert stored_difference(old_json(), changed) == ["optimizer.clip: 0.5 -> 2.0"]


def test_old_values_that_no_key_can_have_are_evaluated_and_exported_but_not_trained_on(monkeypatch):
    monkeypatch.chdir(STORED.parents[1])  # where its suites are
    text = old_json(optimizer__clip_row=0.25)
    config = config_from_json(text, notify=False)
    validate_config(config)
    (line,) = stored_difference(text, config)
    assert "config.optimizer.clip_row is 0.25 and config.optimizer.clip_controller is 0.5" in line and "\n" not in line
    assert stored_difference(text, config, trains=False) == []


def test_a_method_that_a_stored_run_does_not_use_may_have_come_later():
    values = json.loads(config_to_json(load_config("base")))
    del values["lora"]
    config = config_from_json(json.dumps(values))
    validate_config(config)
    assert stored_difference(json.dumps(values), load_config("base")) == []
    values["adapter"]["name"] = "lora"
    with pytest.raises(UserError, match="'lora.projections' is missing"):
        validate_config(config_from_json(json.dumps(values)))
