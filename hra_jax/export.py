"""An exported adapter and its backbone as a portable program, for servers without hra_jax.

    python -m hra_jax.export runs/quickstart/adapter --output served
    python -m hra_jax.export runs/quickstart/adapter --output served --task newcomer

The folder holds one program for all tasks, the weights, and a small file for each task, which is an input of the
program. With --task the rows of these tasks alone are written, into an export that is there: so a server gets a task
that was added since. docs/serving.md says how to run it.
"""

import functools
import sys
from collections.abc import Sequence

from absl import flags
from etils import epath

from hra_jax import cli
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.console import listed, size, stdout, table, tell
from hra_jax.errors import UserError
from hra_jax.serving import folder
from hra_jax.serving.folder import Written
from hra_jax.storage import folders, locks
from hra_jax.tasks.backbone import load_backbone

FLAGS = flags.FLAGS


def export(
    adapter: epath.PathLike,
    output: epath.PathLike,
    *,
    backbone: str | None = None,
    dtype: str = "float32",
    tasks: Sequence[str] = (),
) -> Written:
    """Writes the folder that a server reads, or the rows of some tasks into one that is there.

    Args:
      adapter: folder of an exported adapter.
      output: the folder; an export that is there is replaced, anything else refused.
      backbone: folder of the backbone or `builtin:NAME`; None for the one that the adapter names.
      dtype: of the encoder's weights and of what it computes, 'float32' or 'bfloat16'.
      tasks: whose rows are added to an export that is there; () for all of it, with all tasks.

    Raises:
      UserError: an unknown task, another backbone than the adapter's, a place that is taken, or one that holds the
        export of another adapter.
    """
    folder.check_place(output)
    exported = read_adapter(adapter)
    source = folder.Source(exported, load_backbone(exported, backbone), dtype=dtype, where=str(adapter))
    with locks.hold_beside(epath.Path(output), "export"):
        folders.recover(output)
        return folder.add_rows(source, output, tasks) if tasks else folder.write(source, output)


def define_flags(values: flags.FlagValues = FLAGS) -> None:
    """The flags of this command."""
    text = functools.partial(flags.DEFINE_string, flag_values=values)
    text("output", None, "Folder to make, or to replace where it is an export.", required=True)
    text("backbone", None, "Folder of the backbone, or builtin:NAME; default: as the adapter names it.")
    text("dtype", "float32", "Of the encoder's weights and activations: float32 or bfloat16. Rows are float32 in both.")
    flags.DEFINE_list(
        "task", [], "Tasks whose rows alone are written, into an export that is there.", flag_values=values
    )


def main(argv: Sequence[str]) -> int:
    """Exports what the command line names, and tells its sizes."""
    if len(argv) != 2:
        raise UserError(f"export takes one adapter folder; got {len(argv) - 1} words; usage: ADAPTER --output DIR")
    if FLAGS["task"].present and not FLAGS.task:
        raise UserError("--task is empty; allowed: names of tasks, or none of it for an export of all")
    written = export(argv[1], FLAGS.output, backbone=FLAGS.backbone, dtype=FLAGS.dtype, tasks=FLAGS.task)
    if FLAGS.task:
        each = size(written.sizes["row"])
        tell(f"{FLAGS.output}: rows of {listed(written.tasks)}, at most {each} each")
        return 0
    rows = [(part, size(count)) for part, count in written.sizes.items()]
    rows += [("tasks", f"{len(written.tasks):,}"), ("seconds", f"{written.seconds:.1f}")]
    stdout().print(table(("part", "size"), rows, title=FLAGS.output))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, define_flags=define_flags, takes_words=True))
