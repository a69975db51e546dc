"""How every command starts: flags, configurations, and errors of one line.

A command is a module with a function `main(argv)`:

    def define_flags():
        flags.DEFINE_string("workdir", None, "Work directory.", required=True)

    def main(argv):
        config, workdir = FLAGS.config, FLAGS.workdir
        ...

    if __name__ == "__main__":
        cli.run(main, define_flags=define_flags, config_flag=True)

Flags are defined when the command starts and not when its module is imported, so that commands can import each other
and may have flags of the same name. Exit statuses: what `main` returns (None is 0), 2 for an error of the user's, 75
where storage in the network does not answer, 130 after Ctrl-C.
"""

import ast
import contextlib
import errno
import faulthandler
import functools
import itertools
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any, NamedTuple, NoReturn, TextIO

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from hra_jax.config import keys, renamed
from hra_jax.config.files import load_config, near_key, ready_made_names, validate_config
from hra_jax.console import error_line, near_matches
from hra_jax.errors import UserError
from hra_jax.run.signals import INTERRUPTED
from hra_jax.storage import files, remote, standard_error

# The C++ libraries read these once, when jax or TensorFlow is imported. What the user has set stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

FLAGS = flags.FLAGS

USER_ERROR = 2  # exit status
UNREAD = 141  # as of a process that SIGPIPE ends
_TRUTHS = ("true", "false", "t", "f", "yes", "no", "1", "0")
_HELP = {"help", "helpshort", "helpfull", "helpxml", "?"}
_CONFIG_HELP = (
    "Configuration: a ready-made name (such as quickstart), the path of a file, or W/config.json of a run. Any of its "
    "keys can be overridden: --config.key=value."
)
# Storage trouble that is the user's to mend. TensorStore reports the same as plain text in other exceptions.
_STORAGE_ERRNOS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
_before_failing: list[Callable[[int], None]] = []


class _OneOfTypes(flags.ArgumentParser):
    """Reads a key that may be of several types: `8`, `(2.0, 4.0)` and `'a word'` as Python, other words as they are."""

    def __init__(self, types: tuple[type, ...]):
        self._types = types
        super().__init__()

    def parse(self, argument: Any) -> Any:
        """The value of a text; another value, the one that is there already, as it is."""
        if not isinstance(argument, str):
            return argument
        try:
            value = ast.literal_eval(argument.strip())
        except (SyntaxError, ValueError) as error:
            if str in self._types:
                return argument
            raise ValueError(f"{argument!r} is neither a number nor a tuple") from error
        if isinstance(value, self._types):
            return value
        if str in self._types:
            return argument
        return tuple(value) if isinstance(value, list) else (value,)

    def flag_type(self) -> str:
        """What --help calls it."""
        return " or ".join("word" if kind is str else kind.__name__ for kind in self._types)


for _types in ((tuple, int), (str, tuple), (tuple, str), (str, int, float)):
    config_flags.register_flag_parser_for_type(_types, _OneOfTypes(_types))
_STORAGE_TEXTS = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS))


def run(
    main: Callable[[list[str]], int | None],
    *,
    config_flag: bool = False,
    define_flags: Callable[[], None] | None = None,
    takes_words: bool = False,
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parses the command line, calls `main` and exits the process.

    Args:
      main: takes what is left of the command line (the program's name, then the positional arguments) and returns an
        exit status; None is 0.
      config_flag: whether the command takes `--config NAME|PATH` with overrides `--config.key=value`. `FLAGS.config` is
        then the validated, locked ConfigDict.
      define_flags: defines the command's own flags.
      takes_words: whether the command takes words that are no flags, such as names of files; if not, they are refused.
      argv: the command line, program name included; `sys.argv` where None.

    Raises:
      SystemExit: at the end of every command, unless `main` raises what is not the user's error. Status 2 after a
        UserError, a wrong flag or configuration, and storage that is full or not writable, with one line on stderr,
        `error: ...` (`--traceback` shows where it came from); 75 where storage in the network does not answer; 130
        after Ctrl-C.
    """
    argv = list(sys.argv if argv is None else argv)
    try:
        flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")
        if define_flags is not None:
            define_flags()
        _show_flags()
        if config_flag:
            argv = _define_config(argv)
        app.run(
            functools.partial(_call, main),
            argv=argv,
            flags_parser=functools.partial(_parse_flags, takes_words=takes_words),
        )
    except KeyboardInterrupt:  # where it was not started as `python -m`; else see run/signals.py
        _fail("interrupted", status=INTERRUPTED, argv=argv)
    except flags.Error as error:
        _fail(str(error), status=USER_ERROR, argv=argv)
    except remote.client_errors() as error:
        away = remote.unavailable(error)
        if away is not None:
            _fail(_storage_away(error, away), status=remote.UNAVAILABLE, argv=argv)
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            _end_unread()
        reason = str(error) if isinstance(error, UserError) else _storage_trouble(error)
        if reason is None:
            raise
        _fail(reason, status=USER_ERROR, argv=argv)


def _call(main: Callable[[list[str]], int | None], words: list[str]) -> int | None:
    if faulthandler.is_enabled():
        # absl has it write to descriptor 2, for which something else may stand in.
        with contextlib.suppress(OSError):
            faulthandler.enable(standard_error.duplicate())
    return main(words)


def _show_flags() -> None:
    """Lets --help show the flags of a command that other modules of this package define; absl has its own alone."""
    for module, found in FLAGS.flags_by_module_dict().items():
        if module.partition(".")[0] == __name__.partition(".")[0]:
            for flag in found:
                FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def _parse_flags(argv: list[str], *, takes_words: bool) -> list[str]:
    try:
        rest = FLAGS(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_illegal_value(str(error))) from error
    except SystemExit as stop:
        # absl ends with status 1 after it has printed the help that was asked for.
        raise SystemExit(0 if _flag_names(argv) & _HELP else stop.code) from None
    _check_words(argv, rest[1:], allowed=takes_words)
    _check_not_empty(rest[1:])
    if FLAGS["verbosity"].using_default_value:
        # absl would show every INFO line of every library from here on.
        FLAGS["verbosity"].value = logging.WARNING
        FLAGS["verbosity"].using_default_value = False  # else newer versions of absl set it after this
    if "config" in FLAGS and isinstance(FLAGS.config, ConfigDict):
        renamed.settle(FLAGS.config)
        validate_config(FLAGS.config)
    return rest


def _check_words(argv: Sequence[str], words: Sequence[str], *, allowed: bool) -> None:
    """Refuses words that no flag takes, and values that stand apart from a flag that is on or off.

    Args:
      argv: the command line.
      words: what is left of it without flags and their values.
      allowed: whether the command takes words.
    """
    for before, word in itertools.pairwise(argv):
        if before == "--" or word == "--":
            break
        name = before.lstrip("-")
        name = name if name in FLAGS else name.removeprefix("no")
        if before.startswith("-") and name in FLAGS and FLAGS[name].boolean and word.lower() in _TRUTHS:
            raise UserError(f"{before} {word}: a value of this flag needs a '='; allowed: {before}={word}")
    if words and not allowed:
        raise UserError(f"{words[0]!r} belongs to no flag; allowed: --flag=value, or --flag value")


def _check_not_empty(words: Sequence[str]) -> None:
    """Refuses empty words and values: as a path each would be the current folder, which nobody asked for."""
    for word in words:
        if not word.strip():
            raise UserError(f"{word!r} is neither a path nor a name; allowed: '.' for the current folder")
    for name in FLAGS:
        flag = FLAGS[name]
        # A configuration and decoding say themselves what may be empty; a flag that is empty by default may stay so.
        if name.startswith(("config", "decode.")) or flag.flag_type() != "string" or flag.default == "":
            continue
        if isinstance(flag.value, str) and not flag.value.strip():
            allowed = "the path of a folder" if name == "workdir" else "a value that is not empty"
            raise UserError(f"--{name}={flag.value!r}; allowed: {allowed}")


def _illegal_value(message: str) -> str:
    """absl's message; for a configuration key, what is allowed in place of the parser's reason."""
    match = re.match(r"flag --config\.(.+?)=(.*?): ", message, flags=re.DOTALL)
    if match is None:
        return message
    key = re.sub(r'\["(\w+)"\]', r".\1", match[1])
    now = renamed.RENAMED[key].new if key in renamed.RENAMED else key
    rule = None if now is None else keys.rules().get(now)
    return message if rule is None else f"config.{key} is {match[2]!r}; allowed: {rule.describe()}"


class Command(NamedTuple):
    """One of several commands of a module, each named by the first word.

    Attributes:
      run: takes the other words, and the flags by name.
      usage: the other words, for errors.
      least: how many there are.
      most: how many there may be.
      flags: the names of the flags that it takes.
    """

    run: Callable[..., int | None]
    usage: str
    least: int
    most: float
    flags: tuple[str, ...]


def run_command(
    commands: Mapping[str, Command],
    argv: Sequence[str],
    *,
    flag_values: flags.FlagValues = FLAGS,
    keywords: Mapping[str, str] | None = None,
) -> int | None:
    """Runs the command that the first word names.

    Args:
      commands: the commands by name.
      argv: the program's name, then the words that are no flags.
      flag_values: the flags.
      keywords: {flag: what it is called in Python}, where that is something else.

    Returns:
      The exit status.

    Raises:
      UserError: there is no such command, it takes another number of words, or it does not take a flag that is given.
    """
    name, *arguments = argv[1:] or [""]
    if name not in commands:
        raise UserError(f"unknown command {name!r}; {near_matches(name, list(commands))}")
    command = commands[name]
    if not command.least <= len(arguments) <= command.most:
        said, allowed = " ".join([name, *arguments]), f"{name} {command.usage}".rstrip()
        raise UserError(f"{said}: {len(arguments)} arguments; allowed: {allowed}")
    for flag in dict.fromkeys(flag for other in commands.values() for flag in other.flags):
        if flag_values[flag].present and flag not in command.flags:
            raise UserError(f"--{flag} is no flag of {name}; allowed: {', '.join(f'--{f}' for f in command.flags)}")
    values = {(keywords or {}).get(flag, flag): flag_values[flag].value for flag in command.flags}
    return command.run(*arguments, **values)


def check_output(flag: str, path: str | None, *, suffix: str = "") -> None:
    """Refuses a path that no file can be written to, before any work is done for it.

    Args:
      flag: the flag that gives the path, without its dashes.
      path: its value; None, where the flag was not given, is right.
      suffix: what the path must end in.

    Raises:
      UserError: there is a folder, a link or a device, or the path has another suffix.
    """
    if path is None:
        return
    files.check_output(path, name=f"--{flag}")
    if not path.endswith(suffix):
        raise UserError(f"--{flag}={path!r}; allowed: the path of a file to write that ends in {suffix}")


def _fail(message: str, *, status: int, argv: list[str]) -> NoReturn:
    """Prints one line (with the traceback where it is asked for) and exits."""
    # The flags themselves may be what is wrong, so the command line is read here as text.
    if any(re.fullmatch(r"--?traceback(=(true|1|yes))?", arg, re.IGNORECASE) for arg in argv):
        traceback.print_exc()
    error_line(message)
    for action in _before_failing:
        action(status)
    raise SystemExit(status)


def _end_unread() -> NoReturn:
    """Exits without a word where nobody reads standard output any more, as after `| head`."""
    # Else Python would fail once more where it flushes at the end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for action in _before_failing:
        action(UNREAD)
    raise SystemExit(UNREAD)


def _is_unread(stream: TextIO) -> bool:
    """Whether it is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(stream, 0)  # what is wrong with it is told in any case
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def before_failing(action: Callable[[int], None]) -> None:
    """Has `action` called with the exit status when a command is about to end with an error, its line printed."""
    _before_failing.append(action)


def _flag_names(argv: Sequence[str]) -> set[str]:
    """The names of all flags on the command line, as typed and without their values."""
    end = argv.index("--") if "--" in argv else len(argv)
    return {arg.lstrip("-").split("=", 1)[0] for arg in argv[1:end] if arg.startswith("-")}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _storage_away(error: BaseException, away: remote.StorageUnavailable) -> str:
    """What to tell where storage in the network did not answer."""
    reason = str(error) if isinstance(error, UserError) else (away.strerror or str(away))
    where = f"{away.filename}: " if away.filename and str(away.filename) not in reason else ""
    return f"{where}{reason}; the same command goes on from what is saved"


def _storage_trouble(error: BaseException) -> str | None:
    """What to tell the user where a full or unwritable disk caused the error; None where it did not."""
    for link in _chain(error):
        found = remote.as_os_error(link)
        link = link if found is None else found
        if isinstance(link, OSError) and link.errno in _STORAGE_ERRNOS:
            where = f": {link.filename!r}" if link.filename else ""
            long = link.errno == errno.ENAMETOOLONG
            allowed = "a shorter name" if long else "a folder that can be written, with free space"
            return f"{link.strerror}{where}; allowed: {allowed}"
        for text in _STORAGE_TEXTS:
            if text in str(link):
                return f"{text}: {' '.join(str(link).split())[:300]}"
    return None


# --- The configuration flag -------------------------------------------------------------------------------------------


def _define_config(argv: list[str]) -> list[str]:
    """Defines `--config` from what stands on the command line; returns the command line without it."""
    if _flag_names(argv) & _HELP:
        flags.DEFINE_string("config", None, _CONFIG_HELP)
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS["config"])
        return argv
    name, rest = _take_config(argv)
    if name is None:
        raise UserError(f"--config is missing; allowed: a path, or one of {', '.join(ready_made_names())}")
    config = load_config(name, unfinished=True)
    rest = [_check_override(arg, config) for arg in rest]
    try:
        config_flags.DEFINE_config_dict("config", config, _CONFIG_HELP, sys_argv=rest)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--config: {error}") from error
    return rest


def _take_config(argv: list[str]) -> tuple[str | None, list[str]]:
    """Splits `--config NAME` or `--config=NAME` off; the last one counts."""
    name: str | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in ("--config", "-config"):
            name = next(words, None)
        elif word.startswith(("--config=", "-config=")):
            name = word.split("=", 1)[1]
        else:
            rest.append(word)
    return name, rest


def _check_override(word: str, config: ConfigDict) -> str:
    """Refuses an unknown key in `--config.key=value`; returns the word as config_flags wants it."""
    match = re.match(r"(--?(?:no)?config\.)([^=]*)(.*)", word, flags=re.DOTALL)
    if match is None:
        return word
    start, key, value = match.groups()
    known = keys.flatten_config(config)
    if key not in known:
        inside = tuple(name for name in keys.rules() if name.startswith(f"{key}."))
        hint = f"it is a group, set one of {', '.join(inside)}" if inside else near_key(key)
        raise UserError(f"unknown config key {key!r}; {hint}")
    # config_flags parses the key as Python, where `export.from` is a syntax error but `export["from"]` is not.
    first, *others = key.split(".")
    return start + first + "".join(f'["{part}"]' if iskeyword(part) else f".{part}" for part in others) + value
