"""Comparing evaluations of the same utterances."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rich.console

from hra_jax import compare
from hra_jax.errors import UserError
from hra_jax.evaluation.bootstrap import make_sample
from hra_jax.evaluation.paired import rate_suite
from hra_jax.evaluation.predictions import UtteranceResult
from hra_jax.evaluation.report import write_report
from hra_jax.evaluation.results import evaluate_results
from hra_jax.evaluation.suites import Suite, SuiteTask

ACCOUNTING = {
    "trainable_parameters": 1500,
    "shared_parameters": 1300,
    "parameters_per_task": 100,
    "backbone_parameters": 20000,
    "backbone_fingerprint": "f00d",
}
ODD = "a/b [red]"
WORDS = ("one", "two", "three", "four")


def make_rows(task: str, number: int, *, wrong: float, seed: int) -> list[UtteranceResult]:
    """The same keys and references for every `wrong` and `seed`; the hypotheses miss that part of the words."""
    references, errors = np.random.default_rng(len(task)), np.random.default_rng(seed)
    rows = []
    for index in range(number):
        said = references.choice(WORDS, size=5)
        text = " ".join("five" if errors.random() < wrong else word for word in said)
        rows.append(UtteranceResult(task, f"{index}.wav", " ".join(said), text, None, 1.5))
    return rows


def make_side(wrong: float, *, seed: int) -> list[UtteranceResult]:
    return make_rows("george", 60, wrong=wrong, seed=seed) + make_rows(ODD, 30, wrong=0.3, seed=seed + 1)


def write(folder: Path, rows, *, suite="digits", normalizer="basic", bootstrap=0, **accounting) -> Path:
    names = dict.fromkeys(row.task for row in rows)
    tasks = tuple(SuiteTask(name, "test.jsonl", "", "", name, ()) for name in names)
    results = evaluate_results(
        rows, Suite(suite, normalizer, tasks), accounting=ACCOUNTING | accounting, bootstrap=bootstrap
    )
    write_report(folder, results, rows)
    return folder


ROWS = {"a": make_side(0.4, seed=1), "b": make_side(0.2, seed=3), "c": make_side(0.6, seed=5)}


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> dict[str, Path]:
    """Three evaluations of the same 90 utterances: on george, b is better than a, and c is worse."""
    folder = tmp_path_factory.mktemp("sides")
    return {name: write(folder / name, rows) for name, rows in ROWS.items()}


@pytest.fixture(scope="module")
def compared(sides) -> dict:
    return compare.compare([sides["a"], sides["b"], sides["c"]], samples=500)


def changed(rows, index: int, **fields) -> list[UtteranceResult]:
    return [*rows[:index], dataclasses.replace(rows[index], **fields), *rows[index + 1 :]]


def edit_results(folder: Path, **fields) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(*paths, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        compare.compare(paths, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counts(a, b, task):
    """Keys, and [U, 3] errors of both and words, counted without the library: there are only substitutions here."""
    found = []
    for row, other in zip(a, b, strict=True):
        if row.task == task:
            said = row.text.split()
            wrong = [sum(x != y for x, y in zip(said, r.pred_text.split(), strict=True)) for r in (row, other)]
            found.append((*wrong, len(said)))
    return [(row.key, None) for row in a if row.task == task], np.array(found)


# --- Numbers ----------------------------------------------------------------------------------------------------------


def test_every_other_side_is_compared_with_the_first_on_the_same_utterances(compared):
    assert [Path(entry["path"]).name for entry in compared["comparisons"]] == ["b", "c"]
    for name, entry in zip("bc", compared["comparisons"], strict=True):
        triples = {task: counts(ROWS["a"], ROWS[name], task) for task in ("george", ODD)}
        drawn = {task: make_sample(keys, some[:, :2], some[:, 2]) for task, (keys, some) in triples.items()}
        expected = rate_suite(drawn, samples=500, seed=0)
        for task, found in entry["tasks"].items():
            errors_a, errors_b, words = triples[task][1].sum(axis=0)
            assert (found["wer_a"], found["wer_b"]) == (errors_a / words, errors_b / words)
            assert (found["utterances"], found["words"]) == (len(triples[task][1]), words)
            assert found.items() >= expected.tasks[task].difference(1, 0).items()
        for part in ("macro", "pooled"):
            assert entry[part].items() >= getattr(expected, part).difference(1, 0).items()


def test_rates_of_each_side_are_those_of_its_own_results(compared, sides):
    for letter, name in (("a", "a"), ("b", "b")):
        results = json.loads((sides[name] / "results.json").read_text())
        entry = compared["comparisons"][0]
        assert entry["pooled"][f"wer_{letter}"] == results["wer"]
        assert entry["macro"][f"wer_{letter}"] == pytest.approx(results["wer_macro"], abs=1e-12)
        assert {task: part[f"wer_{letter}"] for task, part in entry["tasks"].items()} == {
            task: scores["wer"] for task, scores in results["tasks"].items()
        }


def test_a_verdict_is_given_only_where_the_interval_excludes_0(compared):
    better, worse = (entry["tasks"] for entry in compared["comparisons"])
    assert [better["george"]["verdict"], better[ODD]["verdict"]] == ["better", "not decidable"]
    assert [worse["george"]["verdict"], worse[ODD]["verdict"]] == ["worse", "not decidable"]
    for entry in compared["comparisons"]:
        for part in (*entry["tasks"].values(), entry["macro"], entry["pooled"]):
            assert part["significant"] == (not part["low"] <= 0 <= part["high"]) == (part["verdict"] != "not decidable")


def test_tables_and_comparisons_see_the_same_draws(tmp_path):
    rows = [
        dataclasses.replace(row, base_pred_text=other.pred_text, tags={"speaker": f"s{at % 9}"})
        for at, (row, other) in enumerate(zip(ROWS["b"], ROWS["a"], strict=True))
    ]
    base = [dataclasses.replace(row, pred_text=row.base_pred_text) for row in rows]
    sides = [write(tmp_path / name, some, bootstrap=300) for name, some in (("base", base), ("own", rows))]
    (found,) = compare.compare(sides, samples=300)["comparisons"]
    table = json.loads((sides[1] / "results.json").read_text())
    parts = [(found["tasks"][task], table["tasks"][task]) for task in table["tasks"]]
    for part, shown in (*parts, (found["macro"], table["over_tasks"]), (found["pooled"], table)):
        assert part.items() >= shown["difference"].items()
        assert part["resampled"] == shown.get("resampled", "tasks") and part["blocks"] in (9, 2)


def test_an_evaluation_does_not_differ_from_itself(sides):
    (entry,) = compare.compare([sides["a"], sides["a"]], samples=100)["comparisons"]
    for part in (*entry["tasks"].values(), entry["macro"], entry["pooled"]):
        assert (part["difference"], part["low"], part["high"], part["verdict"]) == (0, 0, 0, "not decidable")


def test_a_folder_and_its_results_file_are_the_same(sides):
    by_folder, by_file = (
        compare.compare([sides["a"] / file, sides["b"] / file], samples=100) for file in ("", "results.json")
    )
    assert by_folder["comparisons"][0].pop("path") == str(sides["b"])
    assert by_file["comparisons"][0].pop("path") == str(sides["b"] / "results.json")
    assert by_folder["comparisons"] == by_file["comparisons"]


def test_names_of_suites_order_of_rows_and_spelling_of_references_may_differ(sides, tmp_path):
    rows = changed(ROWS["b"], 0, text=f" {ROWS['b'][0].text.upper()}! ")[::-1]
    other = write(tmp_path / "other", rows, suite="renamed")
    expected, found = (compare.compare([sides["a"], side], samples=100) for side in (sides["b"], other))
    assert found["comparisons"][0]["suite"] == "renamed"
    for part in ("tasks", "macro", "pooled"):
        assert found["comparisons"][0][part] == expected["comparisons"][0][part]


def test_utterances_that_share_a_key_are_paired_by_their_references(tmp_path):
    texts = ["one two", "three four", "five six"]
    right = [UtteranceResult("t", "long.wav@12345.7+2", text, text, None, 2.0) for text in texts]
    wrong = changed(right, 2, pred_text="five")
    found = compare.compare([write(tmp_path / "a", wrong), write(tmp_path / "b", wrong[::-1])], samples=50)
    assert found["comparisons"][0]["pooled"]["low"] == found["comparisons"][0]["pooled"]["high"] == 0


def test_line_separators_inside_a_transcript_do_not_end_a_row(tmp_path):
    rows = [UtteranceResult("t", "1.wav", "one\u2028two\x85three", "one\u2029two", None, 1.0)]
    folder = write(tmp_path / "a", rows)
    assert compare.compare([folder, folder], samples=10)["comparisons"][0]["pooled"]["words"] == 3


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_fewer_than_two_evaluations_are_refused(sides):
    assert refused().startswith("0 evaluations") and refused(sides["a"]).startswith("1 evaluations")


def test_samples_and_seed_out_of_range_are_refused(sides):
    assert "samples must be 1 or more; got 0" in refused(sides["a"], sides["b"], samples=0)
    assert "seed of a bootstrap must be 0 or more; got -1" in refused(sides["a"], sides["b"], seed=-1)


def test_a_missing_file_is_named(sides, tmp_path):
    assert f"{tmp_path / 'none'} is not a file; needed is a results.json" in refused(sides["a"], tmp_path / "none")
    assert f"{tmp_path / 'results.json'} is not a file" in refused(sides["a"], tmp_path)
    folder = write(tmp_path / "b", ROWS["b"])
    (folder / "predictions_george.jsonl").unlink()
    line = refused(sides["a"], folder)
    assert "predictions_george.jsonl is not a file; needed is the predictions of the task 'george'" in line


@pytest.mark.parametrize("content", [b'{"suite": ', b"", b"\xff\xfe\xfa"])
def test_broken_json_is_named_with_its_line(content, sides, tmp_path):
    folder = write(tmp_path / "b", ROWS["b"])
    predictions = folder / "predictions_george.jsonl"
    lines = predictions.read_bytes().splitlines()
    predictions.write_bytes(b"\n".join([*lines[:2], content, *lines[3:]]))
    assert f"{predictions}:3: not JSON" in refused(sides["a"], folder)
    (folder / "results.json").write_bytes(content)
    assert f"{folder / 'results.json'}: not JSON" in refused(sides["a"], folder)


def test_fields_that_are_missing_or_of_another_kind_are_named(sides, tmp_path):
    folder = write(tmp_path / "b", ROWS["b"])
    whole = json.loads((folder / "results.json").read_text())
    for fields, told in (
        ({"normalizer": 3}, "needs 'normalizer' (a string); got 3"),
        ({"shared_parameters": None}, "needs 'shared_parameters' (an integer of at least 0); got None"),
        ({"trainable_parameters": -5}, "needs 'trainable_parameters' (an integer of at least 0); got -5"),
        ({"tasks": {}}, "has 0 tasks; needed are 1 or more"),
        (
            {"tasks": {"george": 1}},
            "task 'george': must be a JSON object with 'substitutions', 'deletions', 'insertions', 'words'; got 1",
        ),
        ({"tasks": {"george": {}}}, "task 'george': needs 'substitutions' (an integer of at least 0); got nothing"),
        ({"normalizer": "loud"}, "normalizer 'loud' is unknown; allowed: none, lower, basic"),
    ):
        edit_results(folder, **whole | fields)
        assert told in refused(sides["a"], folder)
    (folder / "results.json").write_text("[1, 2]")
    assert "results.json: must be a JSON object with 'suite', " in refused(folder, sides["a"])
    edit_to = folder / "predictions_george.jsonl"
    (folder / "results.json").write_text(json.dumps(whole))
    edit_to.write_text('{"task": "george", "key": "0.wav", "text": "one", "pred_text": "", "words": 1}\n')
    assert f"{edit_to}:1: needs 'errors' (an integer of at least 0); got nothing" in refused(sides["a"], folder)


def test_predictions_of_another_task_or_another_evaluation_are_refused(sides, tmp_path):
    folder = write(tmp_path / "b", ROWS["b"])
    predictions = folder / "predictions_george.jsonl"
    own = predictions.read_text()
    predictions.write_text((sides["a"] / predictions.name).read_text())
    line = refused(sides["a"], folder)
    assert str(predictions) in line and "both must come from one evaluation" in line
    predictions.write_text(own.replace('"task": "george"', '"task": "theo"'))
    assert f"{predictions}:1: belongs to the task 'theo'; allowed here: 'george'" in refused(sides["a"], folder)


def test_different_normalizers_are_refused(sides, tmp_path):
    line = refused(sides["a"], write(tmp_path / "b", ROWS["b"], normalizer="none"))
    assert f"{sides['a']} has the normalizer 'basic@2', {tmp_path / 'b'} has 'none@2'" in line


def test_sides_of_two_versions_of_a_normalizer_are_counted_again_by_the_newer(tmp_path):
    rows = [UtteranceResult("t", f"{at}.wav", "one two", "one tw\u200bo", None, 2.0) for at in range(4)]
    old, new = (write(tmp_path / name, rows, normalizer=name) for name in ("basic@1", "basic"))
    assert [json.loads((side / "results.json").read_text())["wer"] for side in (old, new)] == [0.5, 0]
    (found,) = compare.compare([old, new], samples=10)["comparisons"]
    assert (found["pooled"]["wer_a"], found["pooled"]["wer_b"]) == (0, 0)
    edit_results(new, normalizer="basic")  # as it was written before results said a version
    assert compare.compare([new, new], samples=10)["normalizer"] == "basic@2"
    results = json.loads((new / "results.json").read_text())
    (new / "results.json").write_text(json.dumps({name: results[name] for name in results if name != "versions"}))
    assert compare.compare([new, new], samples=10)["normalizer"] == "basic@1"


def test_tasks_that_a_side_lacks_are_named_with_the_side(sides, tmp_path):
    fewer = write(tmp_path / "fewer", [row for row in ROWS["b"] if row.task == "george"])
    assert f"{fewer} lacks the tasks {ODD!r}; both sides must have the same tasks" in refused(sides["a"], fewer)
    (found,) = compare.compare([sides["a"], fewer], samples=50, common=True)["comparisons"]
    (alone,) = compare.compare([write(tmp_path / "alone", ROWS["a"][:60]), fewer], samples=50)["comparisons"]
    assert {name: found[name] for name in ("tasks", "macro", "pooled")} == {
        name: alone[name] for name in ("tasks", "macro", "pooled")
    }
    other = write(tmp_path / "other", [row for row in ROWS["b"] if row.task == ODD])
    assert "have no task in common" in refused(fewer, other, common=True)
    assert f"{fewer} lacks the tasks {ODD!r}" in refused(fewer, sides["a"])
    other = write(tmp_path / "other", [*ROWS["b"][:60], *make_rows("theo", 3, wrong=0.1, seed=0)])
    line = refused(sides["a"], other)
    assert f"{sides['a']} lacks the tasks 'theo'; {other} lacks the tasks {ODD!r}" in line


def test_utterances_that_a_side_lacks_are_counted_and_named(sides, tmp_path):
    fewer = write(tmp_path / "fewer", ROWS["b"][5:])
    told = "lacks 5 utterances, such as '0.wav', '1.wav', '2.wav' and 2 more; both sides must score"
    assert f"task 'george': {fewer} {told}" in refused(sides["a"], fewer)
    assert f"task 'george': {fewer} {told}" in refused(fewer, sides["a"])
    twice = write(tmp_path / "twice", [*ROWS["b"], ROWS["b"][0]])
    assert f"{sides['a']} lacks 1 utterances, such as '0.wav'" in refused(sides["a"], twice)


def test_keys_that_an_earlier_version_rounded_are_those_of_today(tmp_path):
    def rows(wrong: float, seed: int, form: str) -> list[UtteranceResult]:
        starts = [3600.015 + 0.25 * number for number in range(20)]
        found = make_rows("ann", 20, wrong=wrong, seed=seed)
        return [
            dataclasses.replace(row, key=f"a@b+c.wav@{start:{form}}+1.5")
            for row, start in zip(found, starts, strict=True)
        ]

    old, new = write(tmp_path / "old", rows(0.4, 1, "g")), write(tmp_path / "new", rows(0.2, 3, ".15g"))
    again = write(tmp_path / "again", rows(0.2, 3, "g"))
    found = [compare.compare([old, side], samples=50)["comparisons"][0]["pooled"] for side in (new, again)]
    assert found[0] == found[1] and found[0]["utterances"] == 20
    others = [dataclasses.replace(row, key=row.key.replace("3600", "3700")) for row in rows(0.2, 3, ".15g")]
    with pytest.raises(UserError, match="lacks 20 utterances"):
        compare.compare([old, write(tmp_path / "others", others)])


def test_another_reference_or_number_of_words_is_refused(sides, tmp_path):
    other = write(tmp_path / "other", changed(ROWS["b"], 7, text="one two"))
    line = refused(sides["a"], other)
    assert (
        "task 'george': the reference of '7.wav' is " in line and f"'one two' in {other}; it must be the same" in line
    )
    folder = write(tmp_path / "b", ROWS["b"])
    predictions = folder / "predictions_george.jsonl"
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    rows[0]["words"], rows[1]["words"] = 4, 6  # the sum stays
    predictions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"'0.wav' has 5 words in {sides['a']} and 4 in {folder}; they must be as many" in refused(sides["a"], folder)


# --- The command ------------------------------------------------------------------------------------------------------


def test_the_tables_show_every_task_the_means_and_what_each_side_trains(compared):
    stream = io.StringIO()
    compare.print_tables(compared, console=rich.console.Console(file=stream, width=110))
    lines = stream.getvalue().splitlines()
    for entry in compared["comparisons"]:
        shown = {**entry["tasks"], "mean of the tasks": entry["macro"], "all utterances": entry["pooled"]}
        for name, part in shown.items():
            bounds = f"{100 * part['low']:+.2f} to {100 * part['high']:+.2f}"
            rates = (f"{part['wer_a']:.1%}", f"{part['wer_b']:.1%}", f"{100 * part['difference']:+.2f}", bounds)
            cells = [name, *rates, part["verdict"]]
            assert cells in [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    trained = "suite digits; trained parameters: 1,300 shared, 100 per task, 1,500 in total"
    assert [line[:2] for line in lines if trained in line] == ["A:", "B:", "A:", "B:"]
    assert "500 paired resamples" in lines[-1]


def test_sides_that_are_decoded_differently_are_told(sides, tmp_path, capsys):
    told = "decoded differently: A with greedy decoding; B with a beam of 16, the language model 'train' (0123456789ab)"
    decoding = {"method": "beam", "beam": 16, "lm": {"name": "train", "digest": "0123456789abcdef"}}
    for name, facts in (("greedy", {"method": "greedy"}), ("beam", decoding)):
        shutil.copytree(sides["a"], tmp_path / name)
        edit_results(tmp_path / name, decoding=facts)
    former = tmp_path / "former"  # of a version that did not say it
    shutil.copytree(sides["a"], former)
    content = json.loads((former / "results.json").read_text())
    content.pop("decoding")
    (former / "results.json").write_text(json.dumps(content))
    for first, second, said in ((former, "beam", True), ("greedy", "beam", True), (former, "greedy", False)):
        found = compare.compare([tmp_path / first, tmp_path / second], samples=10)
        compare.print_tables(found)
        assert (told in capsys.readouterr().out) is said
    assert found["reference"]["decoding"] == {"method": "greedy"}


def test_predictions_of_which_nobody_knows_what_was_trained_are_compared(sides, tmp_path, capsys):
    names = ("trainable_parameters", "shared_parameters", "parameters_per_task", "backbone_parameters")
    theirs = write(tmp_path / "theirs", ROWS["b"], **dict.fromkeys(names))
    found = compare.compare([sides["a"], theirs], samples=50)
    ours = compare.compare([sides["a"], sides["b"]], samples=50)
    assert [found["comparisons"][0][name] for name in ("tasks", "macro", "pooled")] == [
        ours["comparisons"][0][name] for name in ("tasks", "macro", "pooled")
    ]
    compare.print_tables(found)
    assert "suite digits; what it trained is not known" in capsys.readouterr().out


def test_a_difference_of_0_is_shown_without_a_minus(sides, capsys):
    compare.print_tables(compare.compare([sides["a"], sides["a"]], samples=10))
    shown = capsys.readouterr().out
    assert shown.count("+0.00 to +0.00") == 4 and "-0.00" not in shown


def call(env, *arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "hra_jax.compare", *map(str, arguments)]
    return subprocess.run(line, env=env, capture_output=True, text=True, check=False)


def test_the_command_prints_the_tables_and_writes_what_the_function_returns(sides, compared, tmp_path, command_env):
    output = tmp_path / "made" / "differences.json"
    done = call(command_env, sides["a"], sides["b"], sides["c"], "--json", output, "--samples=500")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("mean of the tasks") == 2 and done.stderr == ""
    assert json.loads(output.read_text()) == compared


def test_an_error_of_the_command_is_one_line_with_status_2(sides, tmp_path, command_env):
    done = call(command_env, sides["a"], tmp_path / "none")
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("error: ")
        and "is not a file; needed is a results.json" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_an_evaluation_or_a_folder_is_not_written_over(sides, tmp_path):
    for output in (sides["b"] / "results.json", sides["b"] / ".." / "b" / "results.json"):
        with pytest.raises(UserError, match="is one of the evaluations to compare"):
            compare._check_output(str(output), [str(sides["a"]), str(sides["b"])])
    for output in ("", str(tmp_path)):
        with pytest.raises(UserError, match="is a folder"):
            compare._check_output(output, [str(sides["a"]), str(sides["b"])])


def test_the_command_starts_without_jax(command_env):
    code = "import sys, hra_jax.compare; print({'jax', 'tensorflow', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], env=command_env, capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr
