import json

import pytest
from absl import flags
from reference import corpus_trees

from hra_jax.data import cache
from hra_jax.data.corpora import catalogue, commands, prepared
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError


def run(monkeypatch, *words: str) -> None:
    """Runs a command line without its program."""
    values = flags.FlagValues()
    commands.define_flags(values)
    monkeypatch.setattr(commands, "FLAGS", values)
    commands.main(values(["corpora", *words]))


def refused(monkeypatch, *words: str) -> str:
    with pytest.raises(UserError) as raised:
        run(monkeypatch, *words)
    return str(raised.value)


def test_the_list_names_every_corpus_and_what_is_prepared(monkeypatch, capsys, tmp_path):
    (tmp_path / "ljspeech" / "1.1.1").mkdir(parents=True)
    (tmp_path / "ljspeech" / "1.1.1" / "dataset_info.json").write_text("{}")
    run(monkeypatch, "list", "--data_dir", str(tmp_path))
    printed = "".join(capsys.readouterr().out.split())
    for name, corpus in catalogue.CORPORA.items():
        assert f"hra/{name}{corpus.configs[0]}" in printed
    assert printed.count("ljspeech") == 2


@pytest.mark.parametrize("name", ["hra/vctk/mic1", "vctk/mic1"])
def test_what_is_shown_of_a_corpus_has_its_splits_and_the_commands(monkeypatch, capsys, name):
    run(monkeypatch, "show", name)
    printed = capsys.readouterr().out
    assert "python -m hra_jax.data.corpora prepare hra/vctk/mic1 --data_dir D\n" in printed
    assert "python -m hra_jax.data.cache --source seqio:hra/vctk/mic1/train --data_dir D\n" in printed
    assert all(f"│ {split} " in printed for split in ("train", "validation", "test", "all"))


def test_a_corpus_that_is_imported_is_prepared_and_shown_by_its_commands(monkeypatch, capsys, tmp_path):
    corpus_trees.tedlium(tmp_path / "TED")
    name, folder = "hra/tedlium/release3", str(tmp_path / "D")
    run(monkeypatch, "prepare", name, "--source", str(tmp_path / "TED"), "--data_dir", folder)
    printed = capsys.readouterr().out
    assert f"next: python -m hra_jax.data.cache --source seqio:{name}/train --data_dir {folder}\n" in printed
    assert "no_text: 1, such as legacy/dev/AlGore_2009.stm:2" in printed
    run(monkeypatch, "show", name, "--data_dir", folder)
    assert "prepare " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("lst",), "unknown command 'lst'; did you mean 'list'?"),
        ((), "unknown command ''; allowed: list, show, prepare"),
        (("show",), "show: 0 arguments; allowed: show NAME"),
        (
            ("show", "hra/vctk"),
            "'hra/vctk' is a corpus in several configurations; allowed: hra/vctk/mic1, hra/vctk/mic2",
        ),
        (("show", "common_voice"), "hra/common_voice/zh-TW, hra/common_voice/zu"),
        (("list", "--source", "x"), "--source is no flag of list; allowed: --data_dir, --modules"),
        (("prepare", "hra/ljspeech"), "prepare hra/ljspeech needs --data_dir, the folder of all corpora"),
        (("prepare", "common_voice/cs", "--data_dir", "D"), "prepare hra/common_voice/cs needs --source"),
        (("prepare", "ljspeech", "--data_dir", "D", "--source", "x"), "--source: TensorFlow Datasets downloads"),
    ],
)
def test_what_is_wrong_is_one_line(monkeypatch, words, named):
    assert named in refused(monkeypatch, *words)


def test_the_cache_command_needs_to_know_where_corpora_lie():
    with pytest.raises(UserError, match="needs --data_dir"):
        cache.items_of("seqio:hra/ljspeech/train", data_dir="", modules=(), report=DataReport())


def test_another_version_of_a_corpus_is_another_source_of_shards(tmp_path):
    folder = tmp_path / "ljspeech" / "1.1.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"version": "1.1.1"}))
    before = prepared.version("hra/ljspeech", tmp_path)
    folder.rename(folder.with_name("1.1.2"))
    assert prepared.version("hra/ljspeech", tmp_path) != before
