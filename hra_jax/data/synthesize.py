"""The command that renders a set of synthetic speakers; `data/synthetic` does the work.

    python -m hra_jax.data.synthesize --set hard --output DIR

`hra_jax.data.synthetic.rendering` says what DIR then holds.
"""

from absl import flags

from hra_jax import cli
from hra_jax.console import tell
from hra_jax.data.synthetic.rendering import check_rendered, render, summary_table
from hra_jax.data.synthetic.speakers import SETS, speakers_from_json
from hra_jax.errors import UserError

__all__ = ["check_rendered", "main", "render", "summary_table"]


def _define_flags() -> None:
    flags.DEFINE_string("set", None, f"Named set of speakers: {', '.join(SETS)}.")
    flags.DEFINE_string("output", None, "Folder for audio and manifests.", required=True)
    flags.DEFINE_string("speakers", None, "JSON file of own speakers, instead of --set.")
    flags.DEFINE_integer("processes", None, "Processes that speak at a time; one per core if not given.")
    flags.DEFINE_float("scale", 1.0, "Multiplies the number of utterances of every split.")
    flags.DEFINE_integer("sample_rate", 8000, "Of the files, Hz.")


def main(argv: list[str]) -> None:
    """Renders what the flags say and prints the table."""
    values = flags.FLAGS
    del argv
    if (values.set is None) == (values.speakers is None):
        raise UserError(f"give either --set ({', '.join(SETS)}) or --speakers FILE")
    own = speakers_from_json(values.speakers) if values.speakers else None
    folder = render(
        values.set or "custom",
        values.output,
        processes=values.processes,
        scale=values.scale,
        sample_rate=values.sample_rate,
        speakers=own,
    )
    tell(*summary_table(folder).splitlines())


if __name__ == "__main__":
    cli.run(main, define_flags=_define_flags)
