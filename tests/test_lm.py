"""`python -m hra_jax.lm`: models from texts, manifests, runs and ARPA files, and what is told of them."""

import gzip
import inspect
import json
import math
import shutil
from pathlib import Path

import pytest

from hra_jax import cli, lm
from hra_jax.decoding import flags as decode_flags
from hra_jax.errors import UserError
from hra_jax.text import arpa, ngram
from hra_jax.text.normalization import normalize_text
from hra_jax.text.vocabularies import CharacterVocabulary, Vocabulary

TEXTS = ["Turn the kitchen light on!", "turn it off", "Don't turn the light on", "call Anna", "call anna before nine"]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("\n".join([*TEXTS, "", "  "]), encoding="utf-8")
    return str(file)


def tiny() -> Vocabulary:
    """The vocabulary that is taken where none is named."""
    return lm.writer(adapter=None, backbone=None, task=None).vocabulary


def normal(texts: list[str]) -> list[list[int]]:
    return [tiny().encode(normalize_text(text, "basic")) for text in texts]


def test_a_model_of_a_text_file_is_that_of_its_normalised_lines(text, tmp_path, capsys):
    status = lm.COMMANDS["make"].run(text=[text], output=str(tmp_path / "a.lm"), order=4)
    assert not status
    model = ngram.read(tmp_path / "a.lm")
    assert model.digest == ngram.train(normal(TEXTS), tiny(), order=4).digest
    assert (model.name, model.order, model.texts, model.tokens) == ("a", 4, 5, sum(map(len, normal(TEXTS))))
    printed = capsys.readouterr().out
    assert f"{model.automaton.states:,} states" in printed and model.digest[:12] in printed


def test_manifests_and_text_files_together_give_what_one_file_of_all_gives(text, tmp_path):
    line = {"audio_filepath": "a.wav", "duration": 9.0}
    rows = [line | {"text": "Play a song"}, line | {"text": "stop", "offset": 1.0}, {"text": "broken"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.wav").write_bytes(b"")
    lm.make(text=[text], manifest=[str(tmp_path / "m.jsonl")], output=str(tmp_path / "a.lm"), smoothing="absolute")
    wanted = ngram.train(normal([*TEXTS, "play a song", "stop"]), tiny(), smoothing="absolute")
    assert ngram.read(tmp_path / "a.lm").digest == wanted.digest


def test_a_run_gives_its_training_texts_or_those_of_one_task(trained, micro, tmp_path, capsys, monkeypatch):
    workdir = str(trained.workdir)
    rows = [json.loads(line) for line in (micro.data / "train.jsonl").read_text().splitlines()]
    lm.make(workdir=workdir, output=str(tmp_path / "all.lm"), order=3)
    lm.make(workdir=workdir, output=str(tmp_path / "ann.lm"), order=3, task="ann")
    of_task = [row for row in rows if row["speaker"] == "ann"]
    for name, some in (("all", rows), ("ann", of_task)):
        model = ngram.read(tmp_path / f"{name}.lm")
        texts = [row["text"] for row in some]
        vocabulary = lm.writer(adapter=None, backbone=micro.backbone, task=None).vocabulary
        assert model.digest == ngram.train([vocabulary.encode(text) for text in texts], vocabulary, order=3).digest
    with pytest.raises(UserError, match="unknown task 'nobody'"):
        lm.make(workdir=workdir, output=str(tmp_path / "b.lm"), task="nobody")
    # Its data may have been moved; and nothing that its configuration names is imported.
    moved = Path(shutil.copytree(micro.data, tmp_path / "moved"))
    (moved / "train.jsonl").write_text(json.dumps(of_task[0]) + "\n")
    (tmp_path / "harmful.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(tmp_path)
    config = json.loads((trained.workdir / "config.json").read_text())
    config["data"]["modules"] = ["harmful"]
    config["data"]["sources"][0][1] = "{dir}/train.jsonl"
    (tmp_path / "W").mkdir()
    (tmp_path / "W" / "config.json").write_text(json.dumps(config))
    lm.make(workdir=str(tmp_path / "W"), output=str(tmp_path / "c.lm"), data_dir=str(moved))
    assert ngram.read(tmp_path / "c.lm").texts == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("key", "value", "made"), [("method", "pretrain", "backbone"), ("output", "characters", "adapter")]
)
def test_a_run_whose_vocabulary_is_not_exported_yet_has_no_model(key, value, made, trained, tmp_path):
    config = json.loads((trained.workdir / "config.json").read_text())
    (config if key in config else config["adapter"])[key] = value
    (tmp_path / "W").mkdir()
    (tmp_path / "W" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"its vocabulary comes with .*/{made}, which is not there yet"):
        lm.make(workdir=str(tmp_path / "W"), output=str(tmp_path / "a.lm"))


def test_showing_a_model_tells_what_was_left_out_and_what_it_gives_back(text, tmp_path, capsys):
    lm.make(text=[text], output=str(tmp_path / "a.lm"), order=4, most_bytes=2500)
    capsys.readouterr()
    lm.show(str(tmp_path / "a.lm"), arpa_file=str(tmp_path / "a.arpa"))
    model, printed = ngram.read(tmp_path / "a.lm"), capsys.readouterr().out
    assert sum(model.left_out) > 0 and all(f"{left:,}" in printed for left in model.left_out)
    assert "texts drawn from it" in printed and "written to" in printed
    lm.make(arpa_file=str(tmp_path / "a.arpa"), output=str(tmp_path / "b.lm"))
    assert ngram.read(tmp_path / "b.lm").digest == model.digest


def test_a_model_of_another_vocabulary_is_shown_without_texts(tmp_path, capsys):
    ngram.write(tmp_path / "a.lm", ngram.train([[1, 2, 1]], CharacterVocabulary("xy"), order=2))
    lm.show(str(tmp_path / "a.lm"))
    printed = capsys.readouterr().out
    assert "no texts are drawn" in printed and "texts drawn from it" not in printed
    with pytest.raises(UserError, match=r"a\.lm: a language model of the vocabulary"):
        lm.show(str(tmp_path / "a.lm"), arpa_file=str(tmp_path / "a.arpa"))
    with pytest.raises(UserError, match=r"a\.lm: a language model of the vocabulary"):
        lm.score(str(tmp_path / "a.lm"), text=[str(tmp_path / "none.txt")])


def test_scores_of_texts_are_perplexities_per_token_and_word_and_name_unknown_characters(text, tmp_path, capsys):
    lm.make(text=[text], output=str(tmp_path / "a.lm"), order=3)
    model = ngram.read(tmp_path / "a.lm")
    (tmp_path / "other.txt").write_text("turn it on\ncall \u00e9milie\n", encoding="utf-8")
    capsys.readouterr()
    lm.score(str(tmp_path / "a.lm"), text=[str(tmp_path / "other.txt")])
    printed = capsys.readouterr().out
    rows = normal(["turn it on", "call milie"])
    total = sum(model.automaton.score(row) for row in rows)
    assert f"{math.exp(-total / (20 + 2)):.4g}" in printed and f"{math.exp(-total / (5 + 2)):.4g}" in printed
    assert "1 of 21" in printed and "'\u00e9'" in printed


def test_texts_that_are_drawn_come_as_often_as_the_model_finds_them_likely():
    model = ngram.train([[1, 2], [1, 2], [2], [1]], CharacterVocabulary("ab"), order=2)
    drawn = ngram.drawn_texts(model, blank_id=0, count=1000, seed=1)
    for text in ([1, 2], [2], [1]):
        share = sum(one == text for one in drawn) / len(drawn)
        assert share == pytest.approx(math.exp(model.automaton.score(text)), abs=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": None}, "--output is missing"),
        ({"output": "a.txt"}, "ends in .lm"),
        ({"text": []}, "no text given; allowed: one of --text or --manifest, --workdir, --arpa"),
        ({"workdir": "W"}, "--text or --manifest and --workdir given"),
        ({"order": 0}, "order 0; allowed: 1 to 10"),
        ({"order": 11}, "order 11; allowed: 1 to 10"),
        ({"normalizer": "nice"}, "nice"),
        ({"task": "ann"}, "--task='ann' needs --adapter"),
        ({"backbone": "builtin:none"}, "none"),
        ({"text": ["missing.txt"]}, "missing.txt is not a file; needed is a text file"),
        ({"text": ["latin.txt"]}, r"latin.txt:2: is not UTF-8"),
        ({"text": ["foreign.txt"]}, "foreign.txt: 1 texts, and no token of the vocabulary in them"),
        ({"text": ["empty.txt"]}, "empty.txt: 0 texts, and no token"),
        ({"most_bytes": 100}, "a language model of at most 100 B; allowed: "),
        ({"text": [], "arpa_file": "some.txt"}, r"some.txt: no ARPA file, it has no line \\data\\"),
        ({"text": ["some.txt.gz"]}, "some.txt.gz: is compressed by gzip; allowed: a text file.*, unpacked"),
        ({"text": [], "arpa_file": "some.txt.gz"}, "some.txt.gz: is compressed by gzip"),
        (
            {"text": [], "arpa_file": "some.txt", "order": 3, "most_bytes": 100},
            "--order and --most_bytes would do nothing: --arpa names a model",
        ),
    ],
)
def test_what_cannot_be_made_is_one_line_and_writes_nothing(options, message, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("one\ncaf\u00e9".encode("latin-1"))
    (tmp_path / "foreign.txt").write_text("\u0434\u0430", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "some.txt.gz").write_bytes(gzip.compress(b"one\n"))
    with pytest.raises(UserError, match=message):
        lm.make(**({"text": [text], "output": "a.lm"} | options))
    assert not (tmp_path / "a.lm").exists()


def test_every_flag_of_a_command_is_an_argument_of_it():
    for name, command in lm.COMMANDS.items():
        takes = inspect.signature(command.run).parameters
        keyword = {parameter for parameter in takes if takes[parameter].kind == inspect.Parameter.KEYWORD_ONLY}
        if "decode" in takes:  # the rest
            keyword |= {key.partition(".")[2] for key in decode_flags.NAMES}
        assert {lm.KEYWORDS.get(flag, flag) for flag in command.flags} == keyword, name
    with pytest.raises(UserError, match="unknown command 'mak'; did you mean 'make'"):
        cli.run_command(lm.COMMANDS, ["lm", "mak"])


def test_arpa_files_of_another_program_are_models(tmp_path):
    lines = [
        "\\data\\",
        "ngram 1=4",
        "",
        "\\1-grams:",
        "-99\t<s>",
        "-1\t</s>",
        "-0.5\ta",
        "-0.7\t\u2581",
        "",
        "\\end\\",
    ]
    (tmp_path / "a.arpa").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig", newline="")
    lm.make(arpa_file=str(tmp_path / "a.arpa"), output=str(tmp_path / "a.lm"))
    model = ngram.read(tmp_path / "a.lm")
    assert model.automaton.score(tiny().encode("a a")) == pytest.approx(-2.7 * math.log(10), abs=1e-5)
    assert "\u2581" in arpa.words(tiny())
