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

from . import zoo
from .deployment import label, latencies, loadtest, predict, serve
from .tables import print_accuracies, print_json, show

__all__ = ["app", "main"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the C++ side's start-up notices are not this command's output

app = typer.Typer(
    name="factorizenet",
    help="Which granularity of depth factorization, under int8 quantization, for a budget.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
LevelOption = Annotated[str, typer.Option("--level", help="A level, or one a stage joined by dots: 2, 1.2.4.")]
Width = Annotated[int, typer.Option(help="Channels of the stem, a multiple of 8.")]
Size = Annotated[int, typer.Option(help="Height and width of the images in pixels.")]
Channels = Annotated[int, typer.Option(help="1 (grey) or 3 (RGB).")]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
Stages = Annotated[
    str | None,
    typer.Option(help="blocks x stride of each stage, e.g. 2x2,2x2,2x2.", show_default="the package's own"),
]
DatasetOption = Annotated[
    str, typer.Option("--dataset", help="digits, a TFDS name such as cifar10, or a folder of class folders.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where TFDS keeps its data.", show_default="TFDS_DATA_DIR")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]


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

    first = _spec("0", width, size, channels, classes, stages)
    rows = []
    for level in range(max_level(first) + 1):
        spec = _spec(str(level), width, size, channels, classes, stages)
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

    spec = _spec(level, width, size, channels, classes, stages)
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
    size: Annotated[int | None, typer.Option(help="Resize the images to this.", show_default="the data's own")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3.", show_default="the data's own")] = None,
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
    _spec(level, width, _or(size, 32), _or(channels, 3), 10, stages)  # an error here costs no waiting
    _import_tensorflow()
    shape = None
    if start is not None:
        from .own import spec_of

        source = spec_of(start)
        shape = source.input_shape if size is None and channels is None else None
    data = _load(dataset, size, channels, data_dir, shape=shape)
    height, _, depth = data.image_shape
    if start is not None:
        spec = dataclasses.replace(source, input_shape=data.image_shape, num_classes=data.num_classes)
    elif baseline is not None:
        from .baselines import ResNet8

        spec = ResNet8(input_shape=data.image_shape, num_classes=data.num_classes)
    else:
        spec = _spec(level, width, height, depth, data.num_classes, stages, input_shape=data.image_shape)
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
    _import_tensorflow()
    from .own import load_any, quantize_own
    from .recipe import recipe_for

    own = load_any(model)
    recipe = recipe_for(dataset, **({} if qat_epochs is None else {"qat_epochs": qat_epochs}))
    shape = getattr(own, "input_shape", (None, None, None, None))[-3:]
    data = _load(dataset, None, None, data_dir, shape=shape)
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
    from .int8 import Int8Model

    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; it must be test, validation or train")
    path = file / "model.tflite" if (file / "model.tflite").is_file() else file
    if not path.exists() and str(path).endswith("-int8"):
        path = zoo.load(str(path), "path")
    if path.suffix == ".tflite":
        model = Int8Model(path, threads=threads)
        shape = model.input_shape
    else:
        _import_tensorflow()
        from .own import load_any

        model = load_any(path)
        shape = tuple(model.input_shape[1:])
    data = _load(dataset, None, None, data_dir, shape=shape)
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
        _import_tensorflow()
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
    part: Annotated[str, typer.Option(help="all, training or zoo.")] = "all",
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Measure speed and memory as ratios in one run.

    Every level against level 0, QAT against float, grouped levels against unchanged tf_keras, waiting for data, peak
    memory; with --run the .tflite against QAT Keras. Then how fast the zoo lists, loads and verifies.
    """
    if part not in ("all", "training", "zoo"):
        raise ValueError(f"part is {part!r}; it must be all, training or zoo")
    _import_tensorflow()
    rows = []
    if part in ("all", "training"):
        from .benchmark import measure

        rows += measure(dataset=dataset, width=width, seconds=seconds, run=run, data_dir=data_dir, verbose=not quiet)
    if part in ("all", "zoo"):
        from .zoo_benchmark import measure_zoo

        rows += measure_zoo(data_dir=data_dir, verbose=not quiet)
    if not rows:
        raise ValueError("the zoo is empty, so there is nothing to measure; publish models first")
    show(rows, as_json, "Benchmark")


@app.command()
def analyze(
    names: Annotated[
        list[str], typer.Argument(help="Names of `factorizenet list`, runs' folders, or .h5 and .keras files.")
    ],
    out: Annotated[Path | None, typer.Option(help="Write the report, one HTML file, here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write tables (.parquet, .csv) to this new folder.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Write PNG figures to this folder.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data of files; names and runs have their own.", show_default="the nets' own")
    ] = None,
    scheme: Annotated[
        str, typer.Option(help="per_channel, per_tensor, per_channel_percentile or per_tensor_percentile.")
    ] = "per_channel",
    weight_bits: Annotated[int, typer.Option(help="2 to 8.")] = 8,
    activation_bits: Annotated[int, typer.Option(help="2 to 8.")] = 8,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also each layer quantized alone and left out; takes minutes.")
    ] = False,
    calibration_images: Annotated[int, typer.Option(help="Training images that are looked at.")] = 1_024,
    evaluation_images: Annotated[
        int | None, typer.Option(help="Validation images that accuracies are measured on.", show_default="all")
    ] = None,
    zoo_: Annotated[
        str | None, typer.Option("--zoo", help="A zoo folder or its address.", show_default="the package's own")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Measure what quantization does to each layer.

    Weights and activations, float and quantized, error by layer, accuracy by precision; several nets side by side.
    """
    for path in (out, save):
        if path is not None and path.exists():
            raise FileExistsError(f"{path} is there already; choose another name or remove it")
    _import_tensorflow()
    from .layerwise import analyze_all

    analysis = analyze_all(
        names,
        dataset=dataset,
        data_dir=data_dir,
        calibration_images=calibration_images,
        evaluation_images=evaluation_images,
        scheme=scheme,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        sensitivity=sensitivity,
        zoo=zoo_,
        verbose=not quiet,
    )
    if save is not None:
        analysis.save(save)
    if figures is not None:
        from .layer_figures import write_figures

        write_figures(analysis, figures)
    if out is not None:
        from .report import write_report

        write_report(analysis, out)
    columns = ["net", "precision", "accuracy", "decrease_points", "top1_agreement", "qmse", "kl", "images"]
    rows = json.loads(analysis.output[columns].to_json(orient="records"))
    if as_json:
        print_json(rows)
    else:
        show([{k: "" if v is None else v for k, v in row.items()} for row in rows], False, "Output by precision")


@app.command()
def study(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="The study's folder; the same command continues it.")],
    levels: Annotated[str, typer.Option(help="all, or numbers joined by commas: 0,2,6.")] = "all",
    width: Width = 16,
    size: Annotated[int | None, typer.Option(help="Resize the images to this.", show_default="the data's own")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3.", show_default="the data's own")] = None,
    stages: Stages = None,
    epochs: Annotated[int | None, typer.Option(help="Float epochs.", show_default="the recipe's")] = None,
    qat_epochs: Annotated[int | None, typer.Option(help="QAT epochs.", show_default="the recipe's")] = None,
    max_macs: Annotated[int | None, typer.Option(help="Requirement: of one image.")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(help="Requirement: of the .tflite.")] = None,
    max_ram_bytes: Annotated[int | None, typer.Option(help="Requirement: of the TFLite Micro arena.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Requirement: on this machine, 1 thread.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Requirement: 0..1, int8 on validation.")] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Measure it, too; takes minutes a level.")] = False,
    zoo_: Annotated[str | None, typer.Option("--zoo", help="Take nets from this zoo where it has them.")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Raise the level step by step: train, quantize, analyse, choose.

    Writes study.csv, study.md, figures and report.html, and names the best level for each requirement.
    """
    from .recipe import recipe_for

    given = {"epochs": epochs, "qat_epochs": qat_epochs}
    recipe = recipe_for(dataset, **{k: v for k, v in given.items() if v is not None})
    first = _spec("0", width, _or(size, 32), _or(channels, 3), 10, stages)  # an error here costs no waiting
    chosen = None if levels == "all" else _levels(levels)
    _import_tensorflow()
    from .spec import max_level
    from .study import study as study_levels

    data = _load(dataset, size, channels, data_dir)
    numbers = range(max_level(first) + 1) if chosen is None else chosen
    specs = [_spec(str(n), width, None, None, data.num_classes, stages, input_shape=data.image_shape) for n in numbers]
    wanted = {
        "max_macs": max_macs,
        "max_size_bytes": max_size_bytes,
        "max_ram_bytes": max_ram_bytes,
        "max_latency_ms": max_latency_ms,
        "min_accuracy": min_accuracy,
    }
    requirements = {name: value for name, value in wanted.items() if value is not None}
    found = study_levels(
        data,
        specs,
        out=out,
        recipe=recipe,
        requirements=requirements,
        zoo=zoo_,
        sensitivity=sensitivity,
        verbose=not quiet,
    )
    if as_json:
        print_json({"levels": found.rows, "answers": [dataclasses.asdict(answer) for answer in found.answers]})
        return
    columns = ("name", "macs", "size_bytes", "latency_ms")
    precisions = [key for key in found.rows[0] if key.startswith("test_")]
    show(
        [
            {k: row[k] for k in columns} | {p.removeprefix("test_"): f"{100 * row[p]:.2f} %" for p in precisions}
            for row in found.rows
        ],
        False,
        f"{data.title}: test accuracy",
    )
    for answer in found.answers:
        print(f"{answer.requirement}: {answer.name or 'none'}: {answer.why}")
    print(f"{out}: study.csv, study.md, report.html, figures")


ZooOption = Annotated[
    str | None, typer.Option("--zoo", help="A zoo folder or its http(s) address.", show_default="the package's own")
]
Name = Annotated[str, typer.Argument(help="A name of `factorizenet list`.")]


@app.command("list")
def list_models(
    max_macs: Annotated[int | None, typer.Option(help="Of one image.")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(help="Of the file.")] = None,
    max_ram_bytes: Annotated[int | None, typer.Option(help="Of the TFLite Micro arena (int8).")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="On the card's machine (int8).")] = None,
    precision: Annotated[str | None, typer.Option(help="float or int8.")] = None,
    dataset: Annotated[str | None, typer.Option(help="E.g. cifar10.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="Only the best by validation accuracy (int8 unless said).")
    ] = False,
    zoo_: ZooOption = None,
    as_json: Json = False,
):
    """List the published models within the limits."""
    limits = {
        "max_macs": max_macs,
        "max_size_bytes": max_size_bytes,
        "max_ram_bytes": max_ram_bytes,
        "max_latency_ms": max_latency_ms,
    }
    if best:
        cards = zoo.Cards([zoo.best(precision=precision or "int8", dataset=dataset, zoo=zoo_, **limits)])
    else:
        cards = zoo.list(precision=precision, dataset=dataset, zoo=zoo_, **limits)
    if as_json:
        print_json([card.row() for card in cards])
    else:
        print(cards)


@app.command("card")
def show_card(name: Name, zoo_: ZooOption = None, as_json: Json = False):
    """Show what is known of a published model."""
    from .cards import index_to_json
    from .pages import card_page

    card = zoo.card(name, zoo=zoo_)
    if as_json:
        print(json.dumps(json.loads(index_to_json(zoo.Cards([card])))["models"][0], indent=2))
    else:
        print(card_page(card))


@app.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names of `factorizenet list`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All models.")] = False,
    precision: Annotated[str | None, typer.Option(help="With --all: float or int8 only.")] = None,
    zoo_: ZooOption = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Check published models against their cards.

    Hashes, sizes, costs, operators, RAM, agreement with Keras, and accuracy on whole splits where the data is on this
    machine. Exit code 1 where a check fails.
    """
    if every == bool(names):
        raise ValueError("give names of models, or --all")
    _import_tensorflow()
    if every:
        names = [card.name for card in zoo.list(precision=precision, zoo=zoo_)]
    from .verification import verify_all

    results = verify_all(names, zoo=zoo_, data_dir=data_dir, verbose=not quiet)
    rows = [row for result in results for row in result.rows()]
    if as_json:
        print_json(rows)
    else:
        shown = [row for row in rows if row["passed"] != "ok"]
        if shown:
            show([{k: str(v) for k, v in row.items()} for row in shown], False, "What failed or was skipped")
        passed = sum(row["passed"] == "ok" for row in rows)
        print(f"{len(results)} models, {passed} of {len(rows)} checks passed")
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(results)} models are not what their cards say: {', '.join(failed)}")


@app.command()
def publish(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of finished trainings.")] = None,
    zoo_: Annotated[Path | None, typer.Option("--zoo", help="The zoo folder; made where it is not there.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put them in the place of models of the same name.")
    ] = False,
    latencies: Annotated[
        bool, typer.Option("--latencies", help="Measure every model's latency anew, all in one run.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Add trainings to a zoo folder, each as -float and -int8."""
    if zoo_ is None or not (runs or latencies):
        raise ValueError("give the runs' folders and --zoo FOLDER, or --latencies --zoo FOLDER")
    _import_tensorflow()
    cards = [card for run in runs or () for card in zoo.publish(run, zoo=zoo_, replace=replace, verbose=not quiet)]
    if latencies:
        from .publishing import measure_latencies

        cards = measure_latencies(zoo_, verbose=not quiet)
    if as_json:
        print_json([card.row() for card in cards])
    else:
        print(zoo.Cards(cards))


@app.command()
def search(
    dataset: DatasetOption,
    out: Annotated[Path, typer.Option(help="The search's folder; the same command continues it.")],
    max_macs: Annotated[int | None, typer.Option(help="Of one image.")] = None,
    max_size_bytes: Annotated[int | None, typer.Option(help="Of the .tflite.")] = None,
    max_ram_bytes: Annotated[int | None, typer.Option(help="Of the TFLite Micro arena.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Of one inference here, one thread.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Floor of the int8 validation accuracy, 0..1: fewest MACs are looked for.")
    ] = None,
    width: Annotated[str, typer.Option(help="Channels of the stem; several joined by commas to choose from.")] = "16",
    size: Annotated[int | None, typer.Option(help="Resize the images to this.", show_default="the data's own")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3.", show_default="the data's own")] = None,
    stages: Stages = None,
    epochs: Annotated[int | None, typer.Option(help="Float epochs a net.", show_default="the recipe's")] = None,
    qat_epochs: Annotated[int | None, typer.Option(help="QAT epochs a net.", show_default="the recipe's")] = None,
    max_trials: Annotated[int | None, typer.Option(help="Nets to train at most.", show_default="as needed")] = None,
    patience: Annotated[int, typer.Option(help="Rounds without a better net before the end.")] = 3,
    inherit: Annotated[bool, typer.Option("--inherit", help="Start nets from the weights of the one before.")] = False,
    prune: Annotated[bool, typer.Option(help="Give up hopeless trainings early.")] = True,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    publish: Annotated[Path | None, typer.Option(help="Add the frontier and the best net to this zoo folder.")] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
):
    """Find the best net for a requirement, training few.

    Under KERASTUNER_TUNER_ID=chief (then worker0, worker1, ...), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT the
    same command is the chief, or a worker of it; they share --out.
    """
    from .recipe import recipe_for
    from .requirement import Requirement
    from .spec import max_level
    from .walk import Space, check_budget

    requirement = Requirement(
        max_macs=max_macs,
        max_size_bytes=max_size_bytes,
        max_ram_bytes=max_ram_bytes,
        max_latency_ms=max_latency_ms,
        min_accuracy=min_accuracy,
    )
    given = {"epochs": epochs, "qat_epochs": qat_epochs, "seed": seed}
    recipe = recipe_for(dataset, **{k: v for k, v in given.items() if v is not None})
    try:
        widths = tuple(int(part) for part in width.split(","))
    except ValueError:
        raise ValueError(f"width is {width!r}; it must be a multiple of 8, or several joined by commas: 8,16") from None
    for each in widths:  # an error here costs no waiting
        max_level(_spec("0", each, _or(size, 32), _or(channels, 3), 10, stages))
    _import_tensorflow()
    data = _load(dataset, size, channels, data_dir)
    spec = _spec("0", widths[0], None, None, data.num_classes, stages, input_shape=data.image_shape)
    check_budget(Space(spec, widths), requirement)
    from .search import search as search_nets

    found = search_nets(
        spec,
        data,
        requirement,
        out=out,
        widths=widths,
        recipe=recipe,
        inherit=inherit,
        prune=prune,
        seed=seed,
        max_trials=max_trials,
        patience=patience,
        publish=publish,
        verbose=not quiet,
    )
    if found is None:  # a worker; its chief has the results
        return
    if as_json:
        print_json({"best": found.best and found.best.name, "steps": found.steps, "nets": found.rows})
    else:
        print(found.summary)
        print(f"{found.folder}: results.csv, summary.txt, frontier.png")
    if not found.reached:
        raise RuntimeError("no net was found that meets the requirement; the best one is in the results")


for _command in (latencies, label, serve, predict, loadtest):
    app.command()(_command)


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


def _import_tensorflow():
    """Import it with what its C++ side says at start-up, before it reads any log level, kept off stderr."""
    if "tensorflow" in sys.modules or os.environ.get("FACTORIZENET_TRACEBACK"):
        return
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        from . import _keras  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _message(error):
    if isinstance(error, OSError) and error.strerror:  # the system's own, which says no remedy
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}; give a path that can be written, on a disk with room"
    return str(error) or type(error).__name__


def _fail(message, code):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _spec(level, width, size, channels, classes, stages, input_shape=None):
    from .spec import DEFAULT_STAGES, ModelSpec

    try:
        numbers = tuple(int(part) for part in level.split("."))
    except ValueError:
        raise ValueError(
            f"level is {level!r}; it must be a number, or one a stage joined by dots, e.g. 1.2.4"
        ) from None
    return ModelSpec(
        numbers[0] if len(numbers) == 1 else numbers,
        width=width,
        input_shape=input_shape or (size, size, channels),
        num_classes=classes,
        stages=DEFAULT_STAGES if stages is None else _parse_stages(stages),
    )


def _levels(text):
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"levels is {text!r}; it must be all, or numbers joined by commas, e.g. 0,2,6") from None


def _parse_stages(text):
    try:
        return tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
    except ValueError:
        raise ValueError(f"stages is {text!r}; it must be blocks x stride of each, e.g. 2x2,2x2,2x2") from None


def _load(dataset, size, channels, data_dir, shape=None):
    from .data import load_dataset

    if dataset != "digits" and not Path(dataset).is_dir():
        _import_tensorflow()  # for TFDS
    if shape is not None and None not in shape:
        return load_dataset(dataset, input_shape=tuple(shape), data_dir=data_dir)
    if size is None and channels is None:
        return load_dataset(dataset, data_dir=data_dir)
    return load_dataset(dataset, input_shape=(_or(size, 32), _or(size, 32), _or(channels, 3)), data_dir=data_dir)


def _or(value, default):
    return default if value is None else value


def _span(groups):
    low, high = min(groups), max(groups)
    return str(low) if low == high else f"{low}-{high}"


if __name__ == "__main__":
    sys.exit(main())
