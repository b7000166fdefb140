"""The commands that show what quantization does: `analyze` and `study`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

from typer import Context, Option

from ..console import print_json, require_extra, show
from ..files import check_new, write_text
from . import options
from .search import numbers

__all__ = ["analyze", "study"]


def analyze(
    context: Context,
    names: Annotated[
        list[str], options.net("Names of `factorizenet list`, runs' folders, .h5 and .keras files, or a .tflite.")
    ],
    out: Annotated[Path | None, Option(help="Write the report, one HTML file, here.")] = None,
    save: Annotated[Path | None, Option(help="Write tables (.parquet, .csv) to this new folder.")] = None,
    figures: Annotated[Path | None, Option(help="Write PNG figures to this folder.")] = None,
    dataset: Annotated[
        str | None, Option(help="Data to measure on, for nets that name none.", show_default="the nets' own")
    ] = None,
    scheme: Annotated[str, Option(help="per_channel or per_tensor, either with _percentile.")] = "per_channel",
    weight_bits: Annotated[int, Option(help="2 to 8.")] = 8,
    activation_bits: Annotated[int, Option(help="2 to 8.")] = 8,
    sensitivity: Annotated[
        bool, Option("--sensitivity", help="Also quantize each layer alone; takes minutes.")
    ] = False,
    factorization: Annotated[
        list[Path] | None, Option(help="Show this table of `factorize --table` in the report, too.")
    ] = None,
    calibration_images: Annotated[int, Option(help="Training images to measure ranges on.")] = 1_024,
    evaluation_images: Annotated[
        int | None, Option(help="Validation images to measure on.", show_default="all")
    ] = None,
    pixel_range: options.PixelRange = None,
    pixel_mean: options.PixelMean = None,
    pixel_deviation: options.PixelDeviation = None,
    size: options.OpenSize = None,
    zoo_: options.ZooOption = None,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Measure what quantization does to each layer.

    Distributions of weights and activations, error by layer, accuracy by precision; several nets side by side. Of a single
    .tflite, how each operator uses its bits on training images, and the accuracy.
    """
    if files := [name for name in names if Path(name).is_file() and Path(name).suffix.lower() == ".tflite"]:
        if len(names) > 1:
            raise ValueError(f"{files[0]} is a .tflite, which is analyzed alone; give it alone")
        return _analyze_file(context, files[0], dataset, calibration_images, evaluation_images)
    check_new(out, save, *(figures.glob("*.png") if figures is not None else ()))
    if out is None:
        options.refuse_unused(context, "without --out there is no report", "factorization")
    tables = {path.name: _read_table(path) for path in factorization or ()}
    if out is not None or figures is not None:
        require_extra("altair", "vl_convert", extra="report", what="drawing figures")
    if save is not None:
        require_extra("pyarrow", extra="report", what="writing .parquet")
    from ..analysis.analyze import compare_levels
    from ..loading import resolve

    own = options.own_model(context)
    nets = [resolve(name, zoo_dir=zoo_, **own) for name in names]
    options.check_data_dir(data_dir, *([dataset] if dataset else filter(None, (net.dataset_name for net in nets))))
    analysis = compare_levels(
        nets,
        dataset=dataset,
        data_dir=data_dir,
        zoo_dir=zoo_,
        verbose=not quiet,
        scheme=scheme,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        sensitivity=sensitivity,
        calibration_images=calibration_images,
        evaluation_images=evaluation_images,
    )
    if save is not None:
        analysis.save(save)
    if figures is not None:
        from ..plots import write_figures

        write_figures(analysis, figures)
    if out is not None:
        from ..analysis.report import report_html

        write_text(out, report_html(analysis, factorization=tables))
    columns = ["net", "precision", "accuracy", "decrease_points", "top1_agreement", "qmse", "kl", "images"]
    show(json.loads(analysis.output[columns].to_json(orient="records")), as_json, "Output by precision")


def _analyze_file(context, file, dataset, calibration_images, evaluation_images):
    quantizes = ("scheme", "weight_bits", "activation_bits", "sensitivity", "size")
    reason = f"{file} is a .tflite, with no float net to compare it with"
    options.refuse_unused(context, reason, "out", "save", "figures", "factorization", *quantizes)
    from ..analysis.tflite_layers import layer_rows
    from ..data import Split
    from ..loading import resolve
    from ..models.evaluate import split_logits
    from ..tflite.int8_model import TFLiteModel

    source = resolve(file)
    if dataset is None:
        source.check_data_known()
    model = TFLiteModel(file, pixels=options.own_model(context)["pixels"])
    data = options.load_data(context, dataset or source.dataset_name, model.input_shape, source)
    images = data.calibration(calibration_images)
    split = Split(data.validation.images[:evaluation_images], data.validation.labels[:evaluation_images])
    found = split_logits(model, split).argmax(1) == split.labels
    rows = layer_rows(model, images)
    net = {"file": file, "dataset": data.title, "input": f"{model.input_type}, pixels {model.pixels.range}"}
    net |= {"kernels": model.kernels, "accuracy": float(found.mean()), "images": len(found)}
    if context.params["as_json"]:
        print_json(net | {"operators": rows})
        return
    show(rows, False, f"Operators, on {len(images):,} training images")
    show([net], False, "Validation")


def _read_table(path):
    import pandas

    try:
        return pandas.read_csv(path)
    except ValueError as error:
        raise ValueError(f"{path} is no table ({error}); give what `factorizenet factorize --table` wrote") from None


def study(
    context: Context,
    dataset: options.DatasetOption,
    out: Annotated[Path, Option(help="The study's folder; the same command continues it.")],
    levels: Annotated[str, Option(help="all, or numbers joined by commas: 0,2,6 or 0-3.")] = "all",
    width: options.Width = 16,
    size: options.DataSize = None,
    channels: options.DataChannels = None,
    macro: options.MacroOption = None,
    epochs: options.Epochs = None,
    qat_epochs: options.QatEpochs = None,
    max_macs: options.MaxMacs = None,
    max_size_bytes: options.MaxSizeBytes = None,
    max_ram_bytes: options.MaxRamBytes = None,
    max_latency_ms: options.MaxLatencyMs = None,
    min_accuracy: options.MinAccuracy = None,
    sensitivity: Annotated[
        bool, Option("--sensitivity", help="Also quantize each layer alone; takes minutes a level.")
    ] = False,
    zoo_: Annotated[
        str | None, Option("--zoo", help="Take nets from this zoo.", show_default="the package's own")
    ] = None,
    train_all: Annotated[bool, Option("--train-all", help="Train all nets, taking none from a zoo.")] = False,
    resize: options.Resize = None,
    group_by: options.GroupBy = None,
    skip_broken: options.SkipBroken = False,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Raise the level step by step: train, quantize, analyze, choose.

    Writes study.csv, answers.csv, figures and report.html, and names the best level for each requirement.
    """
    require_extra("altair", "vl_convert", "pyarrow", extra="report", what="a study's report and tables")
    if train_all:
        options.refuse_unused(context, "--train-all takes no net from a zoo", "zoo_")
    recipe = options.recipe_from(context, dataset)
    options.spec_from("0", width, options.image_shape(size, channels), 10, macro)  # an error here costs no waiting
    remedy = "it must be all, or numbers joined by commas, e.g. 0,2,6"
    chosen = None if levels == "all" else sorted({*numbers("levels", levels, remedy)})
    from ..analysis.study import study as study_levels
    from ..spec import max_level

    data = options.load_data(context, dataset)
    first = options.spec_from("0", width, data.image_shape, data.num_classes, macro)
    specs = [dataclasses.replace(first, level=number) for number in chosen or range(max_level(first) + 1)]
    found = study_levels(
        data,
        specs,
        out=out,
        recipe=options.fitting(recipe, data),
        requirements=options.limits_from(context),
        zoo_dir=zoo_,
        train_all=train_all,
        sensitivity=sensitivity,
        verbose=not quiet,
    )
    if as_json:
        print_json({"levels": found.rows, "answers": [dataclasses.asdict(answer) for answer in found.answers]})
        return
    start, rows = f"{data.held_out[0]}_", []
    for row in found.rows:
        costs = {key: row[key] for key in ("name", "macs", "size_bytes", "latency_ms")}
        scores = {key.removeprefix(start): f"{100 * row[key]:.2f} %" for key in row if key.startswith(start)}
        rows.append(costs | scores)
    show(rows, False, f"{data.title}: {data.held_out[0]} accuracy")
    for answer in found.answers:
        print(f"{answer.requirement}: {answer.name or 'none'}: {answer.why}")
    print(f"{out}: study.csv, answers.csv, report.html, figures")
