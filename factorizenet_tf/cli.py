"""The command `factorizenet`: each command parses, calls the package, and prints a table or JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .deployment import label, latencies, loadtest, predict, serve
from .options import (
    Channels,
    Classes,
    DataChannels,
    DataDir,
    DatasetOption,
    DataSize,
    Json,
    LevelOption,
    Quiet,
    Size,
    Stages,
    Width,
    given_or,
    import_tensorflow,
    load_data,
    spec_from,
)
from .study_commands import analyze, search, study
from .tables import print_accuracies, print_json, show
from .zoo_commands import list_models, publish, show_card, verify

__all__ = ["app", "main"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the C++ side's start-up notices are not this command's output

app = typer.Typer(
    name="factorizenet",
    help="Which granularity of depth factorization, under int8 quantization, for a budget.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
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


@app.command()
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


@app.command()
def train(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="The run's folder; the same command continues it.")],
    level: LevelOption = "2",
    width: Width = 16,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Fine-tune this float model: a name of the zoo or a run's folder; gives level and width, too.",
        ),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Train this baseline instead: resnet8.")] = None,
    size: DataSize = None,
    channels: DataChannels = None,
    stages: Stages = None,
    epochs: Annotated[int | None, typer.Option(help="Float epochs.", show_default="the recipe's")] = None,
    qat_epochs: Annotated[int | None, typer.Option(help="QAT epochs.", show_default="the recipe's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="the recipe's")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak of the float phase.", show_default="the recipe's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", show_default="the recipe's")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Train a level in float, then quantized (QAT).

    Then converts it to int8 and evaluates float, PTQ, QAT and .tflite on the whole validation and test splits.
    """
    from .recipe import recipe_for

    given = {
        "epochs": epochs,
        "qat_epochs": qat_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    recipe = recipe_for(dataset, **{k: v for k, v in given.items() if v is not None})
    if baseline not in (None, "resnet8"):
        raise ValueError(f"baseline is {baseline!r}; there is resnet8")
    if baseline and start:
        raise ValueError("--baseline and --from exclude each other; give one")
    spec_from(level, width, given_or(size, 32), given_or(channels, 3), 10, stages)  # an error here costs no waiting
    import_tensorflow()
    shape = None
    if start is not None:
        from .own import spec_of

        source = spec_of(start)
        shape = source.input_shape if size is None and channels is None else None
    data = load_data(dataset, size, channels, data_dir, shape=shape)
    height, _, depth = data.image_shape
    if start is not None:
        spec = dataclasses.replace(source, input_shape=data.image_shape, num_classes=data.num_classes)
    elif baseline is not None:
        from .baselines import ResNet8

        spec = ResNet8(input_shape=data.image_shape, num_classes=data.num_classes)
    else:
        spec = spec_from(level, width, height, depth, data.num_classes, stages, input_shape=data.image_shape)
    from .training import train as train_net

    run = train_net(spec, data, out=out, recipe=recipe, initial=start, verbose=not quiet)
    if as_json:
        print_json(run.metrics)
        return
    print_accuracies(run.metrics)
    print(
        f"{run.metrics['macs']:,} MACs, {run.metrics['params']:,} parameters, {run.metrics['size_bytes']:,} bytes; in {run.folder}"
    )


@app.command()
def quantize(
    model: Annotated[
        Path, typer.Argument(help="Your tf_keras model: .keras, .h5 or a SavedModel's folder, images in 0..1 in.")
    ],
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="Folder for model.tflite and metrics.json.")],
    method: Annotated[str, typer.Option(help="qat, ptq or ptq-per-tensor.")] = "qat",
    qat_epochs: Annotated[int | None, typer.Option(help="QAT epochs.", show_default="the recipe's")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Quantize a model of your own, by PTQ or QAT."""
    import_tensorflow()
    from .own import load_any, quantize_own
    from .recipe import recipe_for

    own = load_any(model)
    recipe = recipe_for(dataset, **({} if qat_epochs is None else {"qat_epochs": qat_epochs}))
    shape = getattr(own, "input_shape", (None, None, None, None))[-3:]
    data = load_data(dataset, None, None, data_dir, shape=shape)
    metrics = quantize_own(own, data, out=out, method=method, recipe=recipe, verbose=not quiet)
    if as_json:
        print_json(metrics)
        return
    print_accuracies(metrics)
    print(f"{metrics['macs']:,} MACs, {metrics['size_bytes']:,} bytes: {out / 'model.tflite'}")


@app.command()
def evaluate(
    file: Annotated[
        Path, typer.Argument(help="A name of the zoo, a .tflite, float.h5, qat.h5 or .keras file, or a run's folder.")
    ],
    dataset: DatasetOption,
    split: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    threads: Annotated[int, typer.Option(help="Threads of the latency measurement (.tflite).")] = 1,
    data_dir: DataDir = None,
    as_json: Json = False,
):
    """Measure a model's accuracy on a whole split.

    Of a .tflite its bytes and latency, too.
    """
    from .export import int8_file
    from .int8 import Int8Model

    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; it must be test, validation or train")
    path = int8_file(file)
    if path.suffix == ".tflite":
        model = Int8Model(path, threads=threads)
        shape = model.input_shape
    else:
        import_tensorflow()
        from .own import load_any

        model = load_any(path)
        shape = tuple(model.input_shape[1:])
    data = load_data(dataset, None, None, data_dir, shape=shape)
    from .evaluation import accuracy

    images = getattr(data, split)
    row = {
        "file": str(path),
        "dataset": data.title,
        "split": split,
        "images": len(images),
        "accuracy": accuracy(model, images),
    }
    if isinstance(model, Int8Model):
        latency = model.latency_ms()
        row |= {"size_bytes": model.size_bytes, "latency_ms": round(latency.median_ms, 4), "threads": threads}
    show([row], as_json, "Accuracy")


@app.command()
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


@app.command()
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


for _command in (analyze, study, verify, publish, search, latencies, label, serve, predict, loadtest):
    app.command()(_command)
app.command("list")(list_models)
app.command("card")(show_card)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a message is one plain line and the exit code says whose fault it was.

    Returns:
        0; 2 for the caller's error; 1 for a run that failed; 130 on Ctrl-C. FACTORIZENET_TRACEBACK=1 shows the stack.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its advice on tracing is for its own users
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if os.environ.get("FACTORIZENET_TRACEBACK"):
            raise
        if hasattr(error, "format_message"):  # a usage error, of click or of Typer's own copy of it
            return _fail(f"{error.format_message()} (see --help)", 2)
        callers = (
            ValueError,
            TypeError,
            FileNotFoundError,
            FileExistsError,
            NotADirectoryError,
            IsADirectoryError,
            PermissionError,
        )
        return _fail(_message(error), 2 if isinstance(error, callers) else 1)
    if code == 130:  # Typer turns Ctrl-C into this code
        return _fail("interrupted; the same command continues a training after its last whole epoch", 130)
    return code


def _message(error):
    if isinstance(error, OSError) and error.strerror:  # the system's own, which says no remedy
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}; give a path that can be written, on a disk with room"
    return str(error) or type(error).__name__


def _fail(message, code):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _span(groups):
    low, high = min(groups), max(groups)
    return str(low) if low == high else f"{low}-{high}"


if __name__ == "__main__":
    sys.exit(main())
