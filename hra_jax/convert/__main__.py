"""A published Conformer checkpoint to a backbone folder.

python -m hra_jax.convert --source w2v-bert-2.0 --output backbones/w2v_bert --dtype bfloat16

The source is a folder as published: config.json, preprocessor_config.json, model.safetensors or its shards, and the
files of the tokenizer where the model has a CTC head. `--help` lists the families that can be converted; each is a file
of hra_jax/convert/families.
"""

import rich.console
from absl import flags

from hra_jax import cli
from hra_jax.console import stdout, table
from hra_jax.convert import families
from hra_jax.convert.conversion import Report, convert

FLAGS = flags.FLAGS


def print_report(report: Report, *, console: rich.console.Console | None = None) -> None:
    """Prints what was converted, and every source tensor that was not used with the reason."""
    encoder, seconds = report.encoder, report.features.stride / report.features.sample_rate
    rows = {
        "backbone": str(report.folder),
        "name": report.info["name"],
        "source": f"{report.family} ({report.architecture})",
        "parameters": f"{report.parameters:,}, stored as {report.dtype}",
        "encoder": f"{encoder.n_layers} layers of width {encoder.d_model}, {encoder.n_heads} heads, "
        f"position {encoder.position}, {1000 * seconds * encoder.subsampling:g} ms frames",
        "vocabulary": report.vocabulary,
        "license": report.info["license"],
        "fingerprint": report.fingerprint,
    }
    unused = [
        ("not used", f"{entry.pattern} ({entry.tensors} tensor{'s' * (entry.tensors > 1)}): {entry.reason}")
        for entry in report.ignored
    ]
    (console or stdout(width=120)).print(table((), [*rows.items(), *unused]))


def define_flags() -> None:
    """The flags of this command."""
    names = ", ".join(family.name for family in families.known().values())
    flags.DEFINE_string("source", None, f"Folder as published, of one of the families {names}.", required=True)
    flags.DEFINE_string("output", None, "Backbone folder to make.", required=True)
    flags.DEFINE_string("dtype", "float32", "Storage dtype: float32 or bfloat16.")
    flags.DEFINE_string("name", None, "Name of the backbone; the name of the source folder where none is given.")
    flags.DEFINE_bool(
        "keep_batch_norm",
        False,
        "Keep BatchNorm beside the depthwise convolution (for full fine-tuning) instead of folding it in.",
    )


def main(argv: list[str]) -> None:
    """Converts what the flags name and prints the report."""
    del argv
    report = convert(
        FLAGS.source, FLAGS.output, dtype=FLAGS.dtype, name=FLAGS.name, keep_batch_norm=FLAGS.keep_batch_norm
    )
    print_report(report)


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags)
