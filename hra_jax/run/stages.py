"""From a configuration to a run before its first step: read, lay out, place. Training and evaluation begin so.

Whatever is wrong with a configuration or its data fails here, before a step is compiled.
"""

from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hra_jax.adapters import methods
from hra_jax.config.files import config_to_json
from hra_jax.config.keys import group
from hra_jax.data.report import DataReport
from hra_jax.run import buckets, foreseen, processes
from hra_jax.run.layout import Layout, check_rows, connected_mesh, lay_out
from hra_jax.run.place import Run, place
from hra_jax.run.read import Material, read_material
from hra_jax.training import sharding


def survey(
    config: ConfigDict,
    workdir: epath.PathLike,
    report: DataReport,
    *,
    suite_dir: str | None = None,
    render: bool = True,
    begins: bool = False,
) -> tuple[Material, Layout]:
    """Reads and lays out a run, and compiles nothing; a collective. Arguments and errors are those of `prepare`."""
    settings, adapter, data, batch, evaluation = (
        group(config, name) for name in ("", "adapter", "data", "batch", "eval")
    )

    # ------------------------------------------------------------------------------------------ processes and devices
    processes.check_same_command(epath.Path(workdir), config_to_json(config))
    mesh = connected_mesh(group(config, "mesh"), multiple=batch.multiple)
    check_rows(batch, sharding.batch_shards(mesh), accumulate=settings.accumulate, evaluation=evaluation)

    # ----------------------------------------------------------------------------------------------------------- read
    material = read_material(
        settings,
        data=data,
        adapter=adapter,
        pretrain=group(config, "pretrain"),
        augment=group(config, "augment"),
        evaluation=evaluation,
        report=report,
        suite_dir=suite_dir,
        render=render,
    )

    # -------------------------------------------------------------------------------------------------------- lay out
    layout = laid_out(material, mesh, config, report)

    if begins:
        foreseen.check(layout, report)
    return material, layout


def laid_out(material: Material, mesh: Mesh, config: ConfigDict, report: DataReport) -> Layout:
    """`lay_out` with the groups of a validated configuration, in which a number of buckets becomes their ends."""
    settings, adapter = group(config, ""), group(config, "adapter")
    if buckets.find_buckets(config, material.sources, material.base):
        check_rows(
            group(config, "batch"),
            sharding.batch_shards(mesh),
            accumulate=settings.accumulate,
            evaluation=group(config, "eval"),
        )
    return lay_out(
        material,
        mesh,
        settings=settings,
        adapter=adapter,
        own=methods.own_settings(config, adapter.name),
        data=group(config, "data"),
        batch=group(config, "batch"),
        augment=group(config, "augment"),
        optimizer=group(config, "optimizer", steps=settings.steps),
        evaluation=group(config, "eval"),
        report=report,
    )


def prepare(
    config: ConfigDict,
    workdir: epath.PathLike,
    report: DataReport,
    *,
    suite_dir: str | None = None,
    render: bool = True,
    begins: bool = False,
) -> Run:
    """Reads, lays out and places a run; a collective.

    Args:
      config: a validated configuration; each stage is given the groups that it uses. Where `batch.buckets` is a number,
        it becomes the buckets that are found.
      workdir: the work directory.
      report: where unusable data goes.
      suite_dir: what `{dir}` in the manifests of suites stands for; None means `data.dir`.
      render: whether the synthetic set that is trained on may be rendered; otherwise it must be there.
      begins: whether the first step is still to come; what is known to go wrong after the last one is then refused.

    Raises:
      UserError: anything that is wrong with the configuration, the data or the backbone.
    """
    material, layout = survey(config, workdir, report, suite_dir=suite_dir, render=render, begins=begins)
    return place(
        material,
        layout,
        settings=group(config, ""),
        adapter=group(config, "adapter"),
        workdir=epath.Path(workdir),
        report=report,
        hashes=group(config, "export").hashes,
    )
