"""The commands of deployment, which `cli` adds to its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .tables import show

__all__ = ["label", "latencies"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def latencies(
    out: Annotated[Path, typer.Option(help="The table, for `export --lower fastest --latencies`.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="int8 nets whose layers are measured: names of the zoo, runs' folders, .tflite files."),
    ] = None,
    width: Annotated[int, typer.Option(help="Without sources: every level of this width's family.")] = 16,
    size: Annotated[int, typer.Option(help="Its images' height and width in pixels.")] = 32,
    threads: Annotated[int, typer.Option(help="Of one inference.")] = 1,
    as_json: Json = False,
):
    """Measure on this machine how fast grouped convolutions run in fewer groups.

    Run it on the board where the net will run; it needs no TensorFlow.
    """
    from .convolutions import int8_convolutions, largest_groups, measure_convolutions, planned_convolutions
    from .export import int8_content
    from .files import write_text

    if out.exists():
        raise FileExistsError(f"{out} is there already; choose another name or remove it")
    if sources:
        found = [row[1:] for source in sources for row in int8_convolutions(int8_content(source))]
    else:
        found = planned_convolutions(width, (size, size, 3))
    shapes = largest_groups(found)
    if not shapes:
        raise ValueError(f"no grouped convolution in {', '.join(sources or [])}: there is nothing to measure")
    table = measure_convolutions(shapes, threads=threads)
    write_text(out, table.to_json())
    show(table.rows(), as_json, f"{table.machine}, {table.runtime}, threads: {table.threads}")


def label(
    folder: Annotated[Path, typer.Argument(help="Of `export --serving`.")],
    name: Annotated[str, typer.Argument(help="Of the model.")],
    stable: Annotated[int | None, typer.Option(help="The version to serve.", show_default="as it is")] = None,
    canary: Annotated[int | None, typer.Option(help="The version to try beside it.", show_default="none")] = None,
    as_json: Json = False,
):
    """Promote an exported version, or roll back to one."""
    from .serving_config import set_labels

    labels = set_labels(folder, name, stable=stable, canary=canary)
    show([{"name": name, "stable": labels.stable, "canary": labels.canary}], as_json, "Labels")
