"""The commands that make a run, by training or quantizing, and that evaluate; `cli` adds them to its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..console import print_accuracies, print_json, show
from .options import (
    DataChannels,
    DataDir,
    DatasetOption,
    DataSize,
    Json,
    LevelOption,
    Quiet,
    Stages,
    Width,
    given_or,
    import_tensorflow,
    load_data,
    spec_from,
)

__all__ = ["evaluate", "quantize", "train"]


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
    from ..recipe import recipe_for

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
        from ..loading import spec_of

        source = spec_of(start)
        shape = source.input_shape if size is None and channels is None else None
    data = load_data(dataset, size, channels, data_dir, shape=shape)
    height, _, depth = data.image_shape
    if start is not None:
        spec = dataclasses.replace(source, input_shape=data.image_shape, num_classes=data.num_classes)
    elif baseline is not None:
        from ..spec import ResNet8

        spec = ResNet8(input_shape=data.image_shape, num_classes=data.num_classes)
    else:
        spec = spec_from(level, width, height, depth, data.num_classes, stages, input_shape=data.image_shape)
    from ..training.train import train as train_net

    run = train_net(spec, data, out=out, recipe=recipe, initial=start, verbose=not quiet)
    if as_json:
        print_json(run.metrics)
        return
    print_accuracies(run.metrics)
    print(
        f"{run.metrics['macs']:,} MACs, {run.metrics['params']:,} parameters, {run.metrics['size_bytes']:,} bytes; in {run.folder}"
    )


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
    from ..loading import load_any, quantize_own
    from ..recipe import recipe_for

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
    from ..loading import int8_file
    from ..tflite.int8_model import Int8Model

    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; it must be test, validation or train")
    path = int8_file(file)
    if path.suffix == ".tflite":
        model = Int8Model(path, threads=threads)
        shape = model.input_shape
    else:
        import_tensorflow()
        from ..loading import load_any

        model = load_any(path)
        shape = tuple(model.input_shape[1:])
    data = load_data(dataset, None, None, data_dir, shape=shape)
    from ..models.evaluate import accuracy

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
