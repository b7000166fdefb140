"""The commands on one net or the family, and the benchmark, which `cli` adds to its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Channels,
    Classes,
    DataDir,
    DatasetOption,
    Json,
    LevelOption,
    Quiet,
    Size,
    Stages,
    Width,
    import_tensorflow,
    spec_from,
)
from .tables import print_json, show

__all__ = ["benchmark", "describe", "export", "levels"]


def levels(
    width: Width = 16,
    size: Size = 32,
    channels: Channels = 3,
    classes: Classes = 10,
    stages: Stages = None,
    as_json: Json = False,
):
    """Show the family: each uniform level's cost."""
    from .cost import cost_rows
    from .spec import max_level

    first = spec_from("0", width, size, channels, classes, stages)
    rows = []
    for level in range(max_level(first) + 1):
        spec = spec_from(str(level), width, size, channels, classes, stages)
        costs = cost_rows(spec)
        groups = [layer.groups for layer in spec.plan() if layer.kernel == 3 and layer.name != "stem"]
        macs = sum(c.macs for c in costs)
        base = rows[0]["macs"] if rows else macs
        rows.append(
            {
                "name": spec.name,
                "level": level,
                "groups": _span(groups),
                "macs": macs,
                "share_of_level_0": round(macs / base, 3),
                "params": sum(c.params for c in costs),
                "weight_bytes": sum(c.weight_bytes for c in costs),
                "largest_activation_bytes": max(c.activation_bytes for c in costs),
            }
        )
    show(rows, as_json, f"FactorizeNet, width {width}, {size}x{size}x{channels}, {classes} classes")


def describe(
    level: LevelOption = "2",
    width: Width = 16,
    size: Size = 32,
    channels: Channels = 3,
    classes: Classes = 10,
    stages: Stages = None,
    as_json: Json = False,
):
    """Show one net, layer by layer."""
    from .cost import cost_rows

    spec = spec_from(level, width, size, channels, classes, stages)
    rows = [row._asdict() for row in cost_rows(spec)]
    if as_json:
        print_json({"name": spec.name, "spec": json.loads(spec.to_json()), "layers": rows})
        return
    summed = ("macs", "params", "weight_bytes")
    total = {key: sum(row[key] for row in rows) if key in summed else "" for key in rows[0]} | {"layer": "total"}
    show([*rows, total], False, spec.name)


def export(
    source: Annotated[
        Path, typer.Argument(help="A name of the zoo, a run's folder, a weights file (.h5) or a tf_keras model.")
    ],
    tflite: Annotated[Path | None, typer.Option(help="Write the int8 .tflite here.")] = None,
    io: Annotated[str, typer.Option(help="Type of the .tflite's input and output: int8 or uint8.")] = "int8",
    lower: Annotated[
        str, typer.Option(help="fastest: rewrite grouped convolutions of the .tflite as what runs fastest.")
    ] = "none",
    latencies: Annotated[
        Path | None,
        typer.Option(help="With --lower: the target's table, from `latencies`.", show_default="measured here"),
    ] = None,
    saved_model: Annotated[Path | None, typer.Option(help="Write a SavedModel to this new folder.")] = None,
    micro: Annotated[
        Path | None, typer.Option(help="Write C++ sources for TensorFlow Lite Micro to this new folder.")
    ] = None,
    serving: Annotated[
        Path | None, typer.Option(help="Write the next version for TensorFlow Serving below this folder.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="With --serving: above the newest.", show_default="the next")
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --serving: for clients.", show_default="the source's")] = None,
    precision: Annotated[
        str | None, typer.Option(help="With --serving, of a run: int8 or float.", show_default="int8")
    ] = None,
    as_json: Json = False,
):
    """Write a trained net where it is used: as .tflite, SavedModel, C++ sources, or for TensorFlow Serving.

    The SavedModel is the float net, or the fake-quantized one where the source is qat.h5.
    """
    from .export import export_saved_model, export_tflite, int8_file
    from .lowering import read_table

    if tflite is None and saved_model is None and micro is None and serving is None:
        raise ValueError(
            "nothing to export; give --tflite FILE, --saved-model FOLDER, --micro FOLDER or --serving FOLDER, or several"
        )
    if tflite is None and (lower != "none" or latencies is not None or io != "int8"):
        raise ValueError("--lower, --latencies and --io are of the .tflite; give --tflite FILE, too")
    if serving is None and not (version is None and name is None and precision is None):
        raise ValueError("--version, --name and --precision are of TensorFlow Serving; give --serving FOLDER, too")
    table = None if latencies is None else read_table(latencies)
    if saved_model is not None or serving is not None or int8_file(source).suffix != ".tflite":
        import_tensorflow()
    written = []
    if tflite is not None:
        exported = export_tflite(source, tflite, lower=lower, latencies=table, io=io)
        written.append(exported.row())
        if exported.lowering is not None and exported.lowering.layers and not as_json:
            show(exported.lowering.rows(), False, f"Groups, by latencies of {exported.lowering.table.machine}")
    if saved_model is not None:
        written.append({"file": str(saved_model), "bytes": export_saved_model(source, saved_model)})
    if micro is not None:
        from .micro_export import export_micro

        written.append(export_micro(source, micro).row())
    if serving is not None:
        from .serving_export import export as export_serving

        written.append(export_serving(source, serving, name=name, version=version, precision=precision).row())
    if as_json:
        print_json(written)
    else:
        for row in written:
            show([row], False, "Written")


def benchmark(
    dataset: DatasetOption = "digits",
    width: Width = 16,
    seconds: Annotated[float, typer.Option(help="Seconds a measurement.")] = 5.0,
    run: Annotated[Path | None, typer.Option(help="A trained run: adds its .tflite against QAT Keras.")] = None,
    part: Annotated[str, typer.Option(help="all, training, search, zoo or micro.")] = "all",
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Measure speed and memory as ratios in one run.

    Every level against level 0, QAT against float, grouped levels against unchanged tf_keras, waiting for data, peak
    memory; with --run the .tflite against QAT Keras. A search's start and proposals; how fast the zoo lists, loads and
    verifies, and how far TensorFlow Lite Micro's outputs are from LiteRT's on each of its int8 models.
    """
    if part not in ("all", "training", "search", "zoo", "micro"):
        raise ValueError(f"part is {part!r}; it must be all, training, search, zoo or micro")
    import_tensorflow()
    rows = []
    if part in ("all", "training"):
        from .benchmark import measure

        rows += measure(dataset=dataset, width=width, seconds=seconds, run=run, data_dir=data_dir, verbose=not quiet)
    if part in ("all", "search"):
        from .search_benchmark import measure_search

        rows += measure_search(verbose=not quiet)
    if part in ("all", "zoo"):
        from .zoo_benchmark import measure_zoo

        rows += measure_zoo(data_dir=data_dir, verbose=not quiet)
    if part in ("all", "micro"):
        from .micro_benchmark import measure_micro

        rows += measure_micro(data_dir=data_dir, verbose=not quiet)
    if not rows:
        raise ValueError("the zoo is empty, so there is nothing to measure; publish models first")
    show(rows, as_json, "Benchmark")


def _span(groups):
    low, high = min(groups), max(groups)
    return str(low) if low == high else f"{low}-{high}"
