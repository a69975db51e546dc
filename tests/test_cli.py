"""The command line: exit statuses and error lines, each from a small command in a process of its own."""

import os
import subprocess
import sys

import pytest
from absl import flags

from hra_jax import cli
from hra_jax.decoding import flags as decode_flags
from hra_jax.errors import UserError

COMMAND = '''
"""A command for the test."""
import errno
import sys

from absl import flags, logging

from hra_jax import cli
from hra_jax.console import tell
from hra_jax.errors import UserError

FLAGS = flags.FLAGS


def define_flags():
    flags.DEFINE_string("workdir", None, "Work directory.", required=True)
    flags.DEFINE_string("do", "print", "What to do.")


def main(argv):
    if FLAGS.do == "75":
        return 75
    if FLAGS.do == "user":
        raise UserError("rate is 3;\\n allowed: 4")
    if FLAGS.do == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "W/checkpoints/7")
    if FLAGS.do == "tensorstore":
        raise ValueError("RESOURCE_EXHAUSTED: Error writing W/checkpoints/7: No space left on device [source=...]")
    if FLAGS.do == "denied":
        try:
            raise OSError(errno.EACCES, "Permission denied", "W/config.json")
        except OSError as error:
            raise RuntimeError("the checkpointer stopped") from error
    if FLAGS.do == "bug":
        raise ValueError("a bug")
    if FLAGS.do == "long":
        raise OSError(errno.ENAMETOOLONG, "File name too long", "W/aaa")
    if FLAGS.do == "other pipe":
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    if FLAGS.do == "interrupt":
        raise KeyboardInterrupt
    if FLAGS.do == "tell":
        return tell("a line")
    config = FLAGS.config
    logging.info("what a library says to itself")
    print(argv[1:], config.steps, config.data.strict, config.export.step, config.batch.buckets, config.data.sources)
    return None


if __name__ == "__main__":
    config_flag, takes_words = "--do" not in " ".join(sys.argv), "b.wav" in sys.argv
    cli.run(main, define_flags=define_flags, config_flag=config_flag, takes_words=takes_words)
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path = tmp_path_factory.mktemp("command") / "command_for_the_test.py"
    path.write_text(COMMAND)
    return path


@pytest.fixture
def call(command, command_env):
    def run(*args: str) -> subprocess.CompletedProcess:
        arguments = [sys.executable, str(command), *args]
        return subprocess.run(arguments, env=command_env, capture_output=True, text=True, check=False)

    return run


def check_user_error(done: subprocess.CompletedProcess, *told: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for words in told:
        assert words in lines[0]


def test_overrides_of_every_type_reach_the_command_with_positional_arguments(call):
    done = call(
        *("--config", "base", "--workdir=w", "a.wav", "--config.steps=3", "--config.data.strict", "b.wav"),
        *("--config.export.step", "last", "--config.batch.buckets=(1.5, 4)"),
        "--config.data.sources=(('a', '{dir}/m.jsonl', 2.0),)",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['a.wav', 'b.wav'] 3 True last (1.5, 4) (('a', '{dir}/m.jsonl', 2.0),)\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--config=quickstrat"], ["'quickstrat'", "did you mean 'quickstart'"]),
        (["--config=base", "--config.stpes=3"], ["'stpes'", "did you mean 'steps'"]),
        (["--config=base", "--config.learning_rate=3"], ["did you mean 'optimizer.learning_rate'"]),
        (["--config=base", "--config.batch=3"], ["'batch'", "batch.seconds"]),
        (["--config=base", "--config.steps=many"], ["config.steps is 'many'", "an integer"]),
        (["--config=base", "--config.export.from=first"], ["config.export.from is 'first'", "'best'"]),
        (["--config=base", "--config.hra.dropout=much"], ["config.hra.dropout is 'much'", "at most 1"]),
        (
            ["--config=base", "--config.optimizer.clip_row=2"],
            ["clip_row is 2.0", "clip_controller is 1.0", "optimizer.clip"],
        ),
        (["--config=base", "--config.log=2"], ["unknown config key 'log'"]),
        (["--config=base", "--wrkdir=w"], ["wrkdir", "workdir"]),
        ([], ["--config", "quickstart"]),
        (
            ["--config=base", "--config.data.strict", "False"],
            ["--config.data.strict False: a value of this flag needs a '='; allowed: --config.data.strict=False"],
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_it_and_status_2(call, args, told):
    check_user_error(call("--workdir=w", *args), *told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--config.export.from=best", "--config.eval.select_suite=hard"], ["export.from is now config.export.step"]),
        (["--config.export.per_task_files"], ["export.per_task_files no longer does anything"]),
        (["--noconfig.export.per_task_files"], ["export.per_task_files no longer does anything"]),
        (["--config.log.every_steps", "3"], ["log.every_steps no longer does anything"]),
        (
            ["--config.lora.dropout=0.2", "--config.adapter.name=lora", "--config.optimizer.clip_row=2"],
            ["lora.dropout is now config.adapter.dropout", "optimizer.clip_row is now config.optimizer.clip"],
        ),
    ],
)
def test_keys_of_earlier_versions_are_taken_with_a_line_for_each(call, words, told):
    done = call("--workdir=w", "--config=base", *words, "b.wav")
    assert done.returncode == 0 and done.stdout.startswith("['b.wav'] "), done.stderr
    assert done.stderr.splitlines() == [f"config.{line}" for line in told]
    assert (" best " in done.stdout) == ("--config.export.from=best" in words)


@pytest.mark.parametrize("takes_words", [False, True])
def test_words_that_belong_to_no_flag_are_refused_unless_the_command_takes_words(monkeypatch, takes_words):
    values = flags.FlagValues()
    monkeypatch.setattr(cli, "FLAGS", values)
    for name in ("strict", "verbosity"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    flags.DEFINE_string("workdir", "w", "", flag_values=values)
    flags.DEFINE_string("adapter", None, "", flag_values=values)
    flags.DEFINE_string("json", "", "", flag_values=values)
    decode_flags.define_flags(values)

    def left(*words: str) -> list[str]:
        values.unparse_flags()
        return cli._parse_flags(["command", *words], takes_words=takes_words)[1:]

    assert left("--strict", "--workdir", "b", "--strict=false") == []
    for value in ("False", "true", "0", "no"):
        with pytest.raises(UserError, match=f"--strict {value}: .* allowed: --strict={value}"):
            left("--strict", value)
    with pytest.raises(UserError, match="--nostrict 1"):
        left("--nostrict", "1")
    for folder in ("", " "):
        with pytest.raises(UserError, match=f"--workdir='{folder}'; allowed: the path of a folder"):
            left("--workdir", folder)
    values["workdir"].value = "w"
    with pytest.raises(UserError, match="--adapter=''; allowed: a value that is not empty"):
        left("--adapter=")
    values["adapter"].value = None
    assert left("--json=", "--decode.lm=") == [] and decode_flags.asked(values) == {"lm": ""}
    values["decode.lm"].value = None
    if takes_words:
        assert left("--workdir=w", "a.wav", "--strict", "b.wav", "--", "False") == ["a.wav", "b.wav", "False"]
        for word in ("", " "):
            with pytest.raises(UserError, match=f"^'{word}' is neither a path nor a name; allowed: '.' for the cur"):
                left("a.wav", word)
        return
    with pytest.raises(UserError, match="'a.wav' belongs to no flag; allowed: --flag=value"):
        left("--workdir=w", "a.wav", "--strict")


def test_a_missing_required_flag_is_named(call):
    check_user_error(call("--config=base"), "--workdir")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("user", ["error: rate is 3; allowed: 4"]),
        ("full", ["No space left on device", "W/checkpoints/7"]),
        ("tensorstore", ["No space left on device", "W/checkpoints/7"]),
        ("denied", ["Permission denied", "W/config.json"]),
        ("long", ["File name too long: 'W/aaa'; allowed: a shorter name"]),
    ],
)
def test_an_error_of_the_users_is_one_line_and_status_2(call, what, told):
    check_user_error(call("--workdir=w", f"--do={what}"), *told)


def test_the_traceback_is_shown_where_it_is_asked_for(call):
    done = call("--workdir=w", "--do=user", "--traceback")
    assert done.returncode == 2
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1] == "error: rate is 3; allowed: 4"


@pytest.mark.parametrize(
    ("what", "told"), [("bug", "ValueError: a bug"), ("other pipe", "BrokenPipeError: [Errno 32] Broken pipe")]
)
def test_a_bug_keeps_its_traceback_and_is_no_user_error(call, what, told):
    done = call("--workdir=w", f"--do={what}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and told in done.stderr


@pytest.mark.parametrize(("what", "status"), [("75", 75), ("interrupt", 130)])
def test_other_statuses_pass_through(call, what, status):
    assert call("--workdir=w", f"--do={what}").returncode == status


def test_a_command_whose_output_nobody_reads_any_more_ends_without_a_word(command, command_env):
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, str(command), "--workdir=w", "--do=tell"]
    done = subprocess.run(words, env=command_env, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_lists_the_flags_whatever_module_defines_them_and_is_no_error(call):
    done = call("--help")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--workdir", "--config", "--[no]traceback"))


def test_the_compile_cache_is_where_the_environment_says_and_no_folder_is_no_error(tmp_path, command_env):
    script = (
        "from hra_jax.run.jax_setup import setup_jax; print(setup_jax()); "
        "import jax; print(jax.config.jax_compilation_cache_dir)"
    )

    def folders(cache: str, home: str) -> list[str]:
        env = command_env | {"HOME": home, "JAX_COMPILATION_CACHE_DIR": cache}
        if not cache:
            del env["JAX_COMPILATION_CACHE_DIR"]
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    (tmp_path / "a_file").touch()
    assert folders(str(tmp_path / "cache"), str(tmp_path)) == [str(tmp_path / "cache")] * 2
    assert folders("", str(tmp_path)) == [os.path.join(str(tmp_path), ".cache", "hra_jax", "jax")] * 2
    assert folders("", str(tmp_path / "a_file"))[0] == "None"
