"""The commands that lay out data, train, quantize and evaluate."""

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Annotated

from typer import Argument, Context, Option

from ..console import print_accuracies, print_json, show
from ..files import check_new, write_text
from . import options

__all__ = ["evaluate", "prepare", "quantize", "train"]

MAX_CLASSES = 20  # that are printed; --json has all


def prepare(
    name: Annotated[str, Argument(help="tiny_imagenet or gtsrb.")],
    archives: Annotated[list[Path], Argument(help="The makers' .zip files.")],
    out: Annotated[Path, Option(help="The new folder.")],
):
    """Lay out the archives of a named data set as class folders."""
    from ..data import named

    counts = named.prepare(name, archives, out)
    print(", ".join(f"{count:,} {split} images" for split, count in counts.items()))
    print(f"export {named.folder_variable(name)}={out.absolute()}")


def train(
    context: Context,
    dataset: options.DatasetOption,
    out: Annotated[Path, Option(help="The run's folder; the same command continues it.")],
    level: options.LevelOption = "2",
    width: options.Width = 16,
    start: Annotated[
        str | None,
        Option(
            "--from",
            help="Fine-tune this float net, a name or a run's folder; sets level, width and macro-architecture.",
            autocompletion=options.net_names,
        ),
    ] = None,
    zoo_: options.ZooOption = None,
    freeze: Annotated[
        int, Option(help="With --from: stem and first N stages keep their weights until QAT.", metavar="N")
    ] = 0,
    baseline: Annotated[str | None, Option(help="Train this baseline instead: resnet8.")] = None,
    size: options.DataSize = None,
    channels: options.DataChannels = None,
    macro: options.MacroOption = None,
    epochs: options.Epochs = None,
    qat_epochs: options.QatEpochs = None,
    batch_size: Annotated[int | None, Option(help="Images a step.", show_default="the recipe's")] = None,
    learning_rate: Annotated[float | None, Option(help="Peak of the float phase.", show_default="the recipe's")] = None,
    seed: Annotated[int | None, Option(help="Of everything random.", show_default="the recipe's")] = None,
    flip: Annotated[
        bool | None,
        Option("--flip/--no-flip", help="Mirror half of the images.", show_default="named sets but digits or signs"),
    ] = None,
    crop_padding: Annotated[
        float | None, Option(help="Random crops, padded by this share.", show_default="0.125")
    ] = None,
    rotate: Annotated[float | None, Option(help="Rotate by up to this many degrees.", show_default="0")] = None,
    brightness: Annotated[float | None, Option(help="Change pixels of 0..1 by up to this.", show_default="0")] = None,
    contrast: Annotated[float | None, Option(help="Scale contrast by up to this share.", show_default="0")] = None,
    cutout: Annotated[float | None, Option(help="Side of a zeroed square, as a share.", show_default="0")] = None,
    class_weights: Annotated[str | None, Option(help="balanced: rare classes weigh more.", show_default="none")] = None,
    resize: options.Resize = None,
    group_by: options.GroupBy = None,
    skip_broken: options.SkipBroken = False,
    data_dir: options.DataDir = None,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write curves and layers for TensorBoard.")] = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Train a level in float, then quantized (QAT).

    Then converts it to int8 and evaluates float, PTQ, QAT and .tflite on the whole validation and test splits.
    """
    from ..spec import Architecture, ResNet8

    recipe = options.recipe_from(context, dataset)
    source, spec, shape = None, None, None
    if start is None:
        options.refuse_unused(context, "without --from no net is looked up", "zoo_", "freeze")
    if start is not None:
        if baseline is not None:
            raise ValueError("--baseline and --from exclude each other; give one")
        source, spec = source_to_start_from(context, start, zoo_)
        shape = options.image_shape(size, channels, spec.input_shape)
    elif baseline is not None:
        if baseline != "resnet8":
            raise ValueError(f"baseline is {baseline!r}; there is resnet8")
        options.refuse_unused(context, "--baseline resnet8 is one net", "level", "width", "macro")
        spec = ResNet8()
    else:  # an error here costs no waiting; which levels there are, the size of the images may decide
        is_known = size is not None or macro is not None
        options.spec_from(level if is_known else "0", width, options.image_shape(size, channels), 10, macro)
    data = options.load_data(context, dataset, shape, source)
    if spec is None:
        spec = options.spec_from(level, width, data.image_shape, data.num_classes, macro)
    else:
        is_own = isinstance(spec, Architecture)
        spec = spec.with_head(data.num_classes) if is_own else dataclasses.replace(spec, num_classes=data.num_classes)
        spec = dataclasses.replace(spec, input_shape=data.image_shape)
    from ..training.train import train as train_net

    command = _shown_command(context, source, spec)
    callbacks = []
    if tensorboard:
        from ..analysis.tracker import DistributionTracker

        callbacks = [DistributionTracker(out / "layers", data.calibration(64))]
    how = {"recipe": recipe, "initial": source, "freeze": freeze, "callbacks": callbacks}
    run = train_net(spec, data, out=out, **how, verbose=not quiet, command=command)
    if as_json:
        print_json(run.metrics)
        return
    print_accuracies(run.metrics, data.class_names)
    macs, params, size_bytes = (run.metrics[key] for key in ("macs", "params", "size_bytes"))
    print(f"{macs:,} MACs, {params:,} parameters, {size_bytes:,} bytes; in {run.folder}")


def _shown_command(context, source, spec) -> str:
    """Write the command as it was given, for a card: without folders of this machine."""
    from ..zoo.publishing import shown_sources
    from ..zoo.store import other_zoo

    values = dict(context.params)
    initial, zoo = (None, None) if source is None else (source.reference, other_zoo(source.zoo))
    values["dataset"], values["start"], values["zoo_"], comment = shown_sources(values["dataset"], initial, zoo)
    given = options.shown_options(context, values, ("out", "data_dir", "tensorboard", "quiet", "as_json"), ("zoo_",))
    return f"factorizenet train {given} --out runs/{spec.name}{comment}"


def source_to_start_from(context, start, zoo, unused=("level", "width", "macro")):
    """Find the float net named by --from, and its spec; options that would change the spec, `unused`, are refused."""
    from ..loading import resolve

    source = resolve(start, zoo_dir=zoo)
    spec = source.spec
    if spec is None:
        raise ValueError(f"{start} has no spec inside; --from takes a -float name, a run's folder or its float.h5")
    source = source.with_precision("float")
    options.refuse_unused(context, f"--from {start} is a {spec.name}", *unused)
    return source, spec


def quantize(
    context: Context,
    model: Annotated[str, options.net("Your .keras, .h5 or (tf_keras) SavedModel; a -float name or a run's float.h5.")],
    dataset: options.DatasetOption,
    out: Annotated[Path, Option(help="Folder for model.tflite and metrics.json.")],
    method: Annotated[str, Option(help="qat, ptq or ptq-per-tensor.")] = "qat",
    qat_epochs: options.QatEpochs = None,
    qat_learning_rate: Annotated[float | None, Option(help="Of QAT at its start.", show_default="0.001")] = None,
    crop_padding: Annotated[float | None, Option(help="Random crops, padded by this share.", show_default="0")] = None,
    flip: Annotated[bool | None, Option(help="Mirror half of the images.", show_default="no")] = None,
    pixel_range: options.PixelRange = None,
    pixel_mean: options.PixelMean = None,
    pixel_deviation: options.PixelDeviation = None,
    size: options.OpenSize = None,
    keep_names: options.KeepNames = False,
    zoo_: options.ZooOption = None,
    resize: options.Resize = None,
    group_by: options.GroupBy = None,
    skip_broken: options.SkipBroken = False,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
):
    """Quantize a model of your own, by PTQ or QAT."""
    if method in ("ptq", "ptq-per-tensor"):
        options.refuse_unused(
            context, f"--method {method} trains nothing", "qat_epochs", "qat_learning_rate", "crop_padding", "flip"
        )
    from ..loading import resolve
    from ..training.quantize import CAREFUL, quantize_own

    source = resolve(model, zoo_dir=zoo_, **options.own_model(context))
    if source.kind == "run":
        raise ValueError(f"{model} is a run's folder, whose net is quantized already; give its float.h5")
    own = source.float_model()
    recipe = options.recipe_from(context, dataset, **CAREFUL)
    data = options.load_data(context, dataset, own.input_shape[1:], source)
    how = {"method": method, "recipe": options.fitting(recipe, data), "keep_names": keep_names}
    metrics = quantize_own(own, data, out=out, **how, verbose=not quiet)
    if as_json:
        print_json(metrics)
        return
    print_accuracies(metrics, data.class_names)
    print(f"{metrics['macs']:,} MACs, {metrics['size_bytes']:,} bytes: {out / 'model.tflite'}")


def evaluate(
    context: Context,
    net: Annotated[str, options.net("A name, a .tflite, float.h5, qat.h5 or .keras file, or a run's folder.")],
    dataset: Annotated[
        str | None, Option("--dataset", help=options.DATASETS, show_default="what the net was trained on")
    ] = None,
    split: Annotated[
        str | None, Option(help="test, validation or train.", show_default="test, else validation")
    ] = None,
    errors: Annotated[
        Path | None, Option(help="Write the wrongly classified images, of float and int8 if both exist, as HTML.")
    ] = None,
    threads: Annotated[int, Option(help="Threads of the latency measurement (.tflite).")] = 1,
    pixel_range: options.PixelRange = None,
    pixel_mean: options.PixelMean = None,
    pixel_deviation: options.PixelDeviation = None,
    size: options.OpenSize = None,
    zoo_: options.ZooOption = None,
    resize: options.Resize = None,
    group_by: options.GroupBy = None,
    skip_broken: options.SkipBroken = False,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
):
    """Measure accuracy on a whole split, and which classes fail.

    For a net on LiteRT (an -int8 name, a run, anybody's .tflite) also its bytes and latency. A .tflite gets pixels as its own
    input's type, scale and zero point say.
    """
    if split not in (None, "train", "validation", "test"):
        raise ValueError(f"split is {split!r}; it must be test, validation or train")
    check_new(errors)
    from ..classes import balanced_accuracy, class_rows, confusion, matrix_to_text
    from ..loading import resolve
    from ..models.evaluate import TOP5_ABOVE, split_logits, top5_accuracy

    own = options.own_model(context)
    is_file = Path(net).is_file() and Path(net).suffix.lower() == ".tflite"
    if is_file:
        options.refuse_unused(context, "a .tflite has its size in the file", "size")
    source = resolve(net, zoo_dir=zoo_, **({} if is_file else own))
    if dataset is None:
        source.check_data_known()
    if source.tflite_file is None:
        options.refuse_unused(context, f"{net} is no .tflite and no latency is measured", "threads")
        model = source.model()
    else:
        from ..tflite.int8_model import TFLiteModel

        pixels = own["pixels"]
        model = TFLiteModel(net, threads=threads, pixels=pixels) if is_file else source.int8_model(threads=threads)
    data = options.load_data(context, dataset or source.dataset_name, model.input_shape[-3:], source)
    if dataset is None:
        source.warn_if_other_data(data)
    labels = source.labels if source.tflite_file is None else model.labels
    if labels is not None and tuple(labels) != data.class_names:
        pairs = enumerate(itertools.zip_longest(labels, data.class_names))
        number, (its, here) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        text = f"classes are compared by number, and class {number} is {its!r} for {net}, {here!r} in the data"
        warnings.warn(text, RuntimeWarning, stacklevel=1)
    split = split or data.held_out[0]
    if split not in data.splits:
        raise ValueError(f"{data.title} has no {split} split; give --split validation")
    images = data.splits[split]
    scores = split_logits(model, images)
    classes = scores.argmax(1)
    names = (*data.class_names, *map(str, range(data.num_classes, classes.max() + 1)))  # a net may have more outputs
    matrix = confusion(classes, images.labels, len(names))
    row = {
        "file": str(source.tflite_file or source.path or source.reference),
        "dataset": data.title,
        "split": split,
        "images": len(images),
        "accuracy": float((classes == images.labels).mean()),
    }
    row |= {"top5_accuracy": top5_accuracy(scores, images.labels)} if data.num_classes > TOP5_ABOVE else {}
    row["balanced_accuracy"] = balanced_accuracy(matrix)
    if source.tflite_file is not None:
        latency = model.latency_ms()
        row |= {"size_bytes": model.size_bytes, "latency_ms": round(latency.median_ms, 4), "threads": threads}
    precision = source.precision
    if is_file:
        precision = "int8" if {"int8", "uint8"} & model.tensor_types else "float"
        mean = ", less a mean, over a deviation" if model.pixels.mean or model.pixels.deviation else ""
        row |= {"input": f"{model.input_type}, pixels {model.pixels.range}{mean}", "batch_size": model.batch_size}
        row["kernels"] = model.kernels
    rows = class_rows({precision: matrix}, names)
    if errors is not None:
        write_text(errors, _errors_page(source, {precision: model}, images, data))
    if as_json:
        print_json([row | {"classes": rows, "confusion": matrix_to_text(matrix)}])
        return
    show([row], False, "Accuracy")
    recall = f"recall_{precision}"
    worst = sorted(rows, key=lambda row: 1 if row[recall] is None else row[recall])[:MAX_CLASSES]
    show(worst, False, "Classes, the lowest recall first")


def _errors_page(source, models, images, data) -> str:
    """Make the page of this net's mistakes, beside those of the same training's net in the other precision, if it exists."""
    from ..analysis.errors import errors_html
    from ..models.evaluate import logits

    if source.kind == "run" and source.spec is not None:
        models |= {"float": source.float_model()}
    elif source.sibling is not None:
        other = source.sibling
        models |= {other.precision: other.int8_model() if other.precision == "int8" else other.model()}
    found = {kind: logits(models[kind], images.images) for kind in ("float", "int8") if kind in models}
    most = max(scores.argmax(1).max() for scores in found.values())
    names = (*data.class_names, *map(str, range(data.num_classes, most + 1)))
    return errors_html(found, images, names, title=f"What {source.name} gets wrong on {data.title}")
