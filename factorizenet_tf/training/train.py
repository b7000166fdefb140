"""Train a spec on a data set: float, quantization-aware and int8 models, resumable at each epoch.

`train` checks, trains in two phases, converts, evaluates and writes metrics.json, in that order.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import runs
from .._keras import keras
from ..classes import confusion, matrix_to_text
from ..console import Progress
from ..cost import count_macs, count_params
from ..data import Dataset
from ..files import write_bytes
from ..loading import Source, resolve
from ..machine import cpu_name, versions
from ..models.build import build
from ..models.convert import to_tflite
from ..models.evaluate import TOP5_ABOVE, agreement, split_logits, top5_accuracy
from ..models.keras3 import check_plain
from ..models.quantize import quantize_aware, without_softmax, wrap_for_qat
from ..models.weights import copy_weights, fingerprint, load_model, save_weights
from ..recipe import Recipe, augmentations, recipe_for
from ..runs import Run
from ..spec import Architecture, ModelSpec
from ..tflite.int8_model import Int8Model
from ..zoo.store import other_zoo
from .loop import TrainingLoop, diverged

__all__ = ["check_data", "conversion_of", "measure", "train"]

AGREEMENT_IMAGES = 1_000


def train(
    spec: ModelSpec | Architecture,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    initial: str | os.PathLike | Source | keras.Model | None = None,
    teacher: str | os.PathLike | Source | keras.Model | None = None,
    freeze: int = 0,
    callbacks: Sequence = (),
    verbose: bool = True,
    command: str | None = None,
) -> Run:
    """Train a net in float, fine-tune it quantization-aware, convert it to int8, and evaluate all of them.

    Called again with the same arguments, it continues after the last whole epoch, or returns the finished run.

    Args:
        spec: the net; its input shape and classes must be the data's.
        dataset: from `load_dataset(..., input_shape=spec.input_shape)`.
        out: the run's folder; made if it does not exist.
        recipe: None: the data set's own, `recipe_for(dataset.name)`.
        initial: for fine-tuning, a float net of the same layers to start from, as `loading.resolve` takes it (e.g.
            "fnet-l2-float"); a head for another number of classes starts anew. A model in memory must be the same at each call.
            None: random weights.
        teacher: a float net of the same images and classes, given like `initial`, whose probabilities the net learns beside
            the labels.
        freeze: with `initial`, the stem and this many of the first stages keep their weights and BatchNorm statistics in the
            float phase. QAT, at its low rate, trains all layers, since each must adapt to the rounding of those before it.
        callbacks: tf_keras callbacks. They see both phases, each with epochs from 0; logs have loss, accuracy,
            val_accuracy and learning_rate. `model.stop_training = True` ends the phase.
        verbose: print a line for each epoch, and a bar on a terminal.
        command: for the card, that trains the net again; None: Python that does is written.

    Raises:
        ValueError: spec, data, recipe or initial weights do not fit each other, the folder holds another run
            (the difference is named) or a damaged checkpoint.
        OSError: the folder cannot be written or the disk is full; what was there stays whole.
        DivergedError: the loss is not finite or far above that of guessing, or the net cannot be converted for that reason.
    """
    recipe = recipe or recipe_for(dataset.name, begun=out)
    check_data(dataset, spec.input_shape, spec.num_classes)
    check_batch(dataset, recipe)
    _check_freeze(freeze, spec, initial)
    source = None if initial is None else resolve(initial)
    start = None if source is None else source.float_model()
    if isinstance(spec, Architecture) and isinstance(initial, keras.Model):
        check_plain(initial)
        start = initial  # as the spec has it: taken in, its Rescaling might be in its weights
    zoo = None if source is None else other_zoo(source.zoo)
    if start is not None:
        copy_weights(start, build(spec))  # what does not fit shows before anything is written
    taught_by = None if teacher is None else resolve(teacher)
    teacher_model = None if taught_by is None else without_softmax(taught_by.float_model())
    if teacher_model is not None:
        check_data(dataset, teacher_model.input_shape[1:], teacher_model.output_shape[-1])
    folder = Path(out)
    if isinstance(spec, Architecture) and recipe.qat_epochs and not (folder / runs.SPEC_FILE).exists():
        wrap_for_qat(build(spec))  # a layer that it refuses shows before the float epochs
    weights = [None if model is None else fingerprint(model) for model in (start, teacher_model)]
    freeze = int(freeze)  # JSON takes no number of NumPy's
    runs.open_run_folder(folder, dataset, recipe, spec.to_json(), *weights, freeze)
    if (folder / runs.METRICS_FILE).exists():
        return runs.load_run(folder)

    def keep(phase, model):
        precision = "float" if phase == "float" else "int8"
        save_weights(model, folder / runs.BEST_FILES[phase], spec=spec, precision=precision)

    with Progress(verbose) as progress:
        progress.say(f"{spec.name} on {dataset.title}: {augmentations(recipe)}")
        loop = TrainingLoop(folder, spec.name, dataset, recipe, tuple(callbacks), progress, teacher_model, keep)
        float_model = _train_float(loop, spec, start, freeze)
        qat_model = _train_qat(loop, spec, float_model) if recipe.qat_epochs else None
        models = _convert(loop, float_model, qat_model)
        taught = taught_by and _reference(taught_by)
        options = {"initial_zoo": zoo, "teacher": taught, "freeze": freeze, "command": command}
        metrics = {
            "name": spec.name,
            **measure(models, dataset, progress),
            "initial": source and _reference(source),
            **{key: value for key, value in options.items() if value},
            "machine": cpu_name(),
            "versions": versions(),
            "training_seconds": round(sum(row["seconds"] for row in loop.history), 1),
        }
        runs.write_metrics(folder, metrics)
    return Run(folder, spec, recipe, metrics)


def _reference(source) -> str:
    return source.reference if source.memory is None else runs.IN_MEMORY


def check_data(dataset: Dataset, input_shape: tuple[int, int, int], num_classes: int) -> None:
    """Raise ValueError where a net and a data set differ in image size or number of classes."""
    given, shape = tuple(dataset.image_shape), tuple(input_shape)
    if given != shape:
        raise ValueError(f"the images are {given}, the net takes {shape}; load the data with input_shape={shape}")
    if dataset.num_classes != num_classes:
        raise ValueError(
            f"{dataset.title} has {dataset.num_classes} classes, the net {num_classes}; give data of the net's classes, or "
            f"a net of num_classes={dataset.num_classes}"
        )


def check_batch(dataset: Dataset, recipe: Recipe) -> None:
    """Raise ValueError if the training images do not fill one batch, so that nothing would be trained."""
    size, images = recipe.batch_size, len(dataset.train)
    if size > images:
        raise ValueError(f"batch_size is {size}, the training images are {images:,}; use at most that many")


def _check_freeze(freeze, spec, initial):
    stages = len(getattr(spec, "stages", ()))
    if freeze not in range(stages + 1):
        raise ValueError(f"freeze is {freeze!r}; {spec.name} has {stages} stages: give a number from 0 to that")
    if freeze and initial is None:
        raise ValueError(f"freeze is {freeze} and the net starts from random weights; give initial=, or leave it out")


def _train_float(loop, spec, start, freeze):
    path = loop.folder / runs.FLOAT_FILE
    keras.utils.set_random_seed(loop.recipe.seed)
    if loop.resumes("float") and path.exists():
        return load_model(path, spec=spec, precision="float")
    model = build(spec)
    if start is not None:
        copy_weights(start, model)
    kept = ("stem", *(f"stage{number}_" for number in range(1, freeze + 1))) if freeze else ()
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(kept)
    loop.fit("float", model)
    model.trainable = True  # of all layers
    save_weights(model, path, spec=spec, precision="float")
    return model


def _train_qat(loop, spec, float_model):
    path = loop.folder / runs.QAT_FILE
    loop.progress.say("inserting fake quantization")
    if loop.resumes("qat") and path.exists():
        return load_model(path, spec=spec, precision="int8")
    if loop.resumes("qat"):  # the checkpoint has the ranges
        model = wrap_for_qat(float_model)
    else:
        model = quantize_aware(float_model, calibration=loop.dataset.calibration(loop.recipe.calibration_images))
    loop.fit("qat", model)
    save_weights(model, path, spec=spec, precision="int8")
    return model


def _convert(loop, float_model, qat_model) -> dict:
    """Quantize after training both ways, convert, write model.tflite; give the models by precision."""
    dataset = loop.dataset
    calibration = dataset.calibration(loop.recipe.calibration_images)
    models, kept = {"float": float_model}, {"labels": dataset.class_names, "resize": dataset.resize}
    with conversion_of(loop):
        for kind in ("tensor", "channel"):
            loop.progress.say(f"quantizing after training, per {kind}")
            content = to_tflite(float_model, calibration=calibration, per_channel=kind == "channel", **kept)
            models[f"ptq_per_{kind}"] = Int8Model(content)
        if qat_model is not None:
            models["qat"] = qat_model
            content = to_tflite(qat_model, **kept)
        models["tflite"] = Int8Model(content)
    write_bytes(loop.folder / runs.TFLITE_FILE, content)
    return models


@contextlib.contextmanager
def conversion_of(loop: TrainingLoop) -> Iterator[None]:
    """Turn a failed conversion in the block into DivergedError if the last epoch's loss was above that of guessing."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the converter raises many kinds
        loss = loop.history[-1]["loss"] if loop.history else 0.0
        guessing = math.log(loop.dataset.num_classes)
        if loss <= guessing:
            raise
        what = (
            f"its last epoch's loss is {loss:.3g}, more than guessing's {guessing:.3g}, and the net cannot be converted"
        )
        raise diverged(f"{what} ({error})") from error


def measure(models: dict, dataset: Dataset, progress: Progress) -> dict:
    """Measure a net's costs, and its accuracies on validation and test, as metrics.json has them.

    Args:
        models: by precision: "float", a tf_keras model; "tflite", an Int8Model; and others of either kind. With "qat" the
            agreement of the .tflite with it is measured, too.
        dataset: its data.
        progress: shows a line for each split.
    """
    splits = {name: split for name, split in dataset.splits.items() if name != "train"}
    accuracies, top5, matrices = {}, {}, {}
    for name, split in splits.items():
        progress.say(f"evaluating on {name}")
        scores = {precision: split_logits(model, split) for precision, model in models.items()}
        found = {precision: values.argmax(1) for precision, values in scores.items()}
        accuracies[name] = {kind: float(np.mean(classes == split.labels)) for kind, classes in found.items()}
        if dataset.num_classes > TOP5_ABOVE:
            top5[name] = {kind: top5_accuracy(values, split.labels) for kind, values in scores.items()}
        matrices[name] = {
            title: matrix_to_text(confusion(found[kind], split.labels, dataset.num_classes))
            for kind, title in (("float", "float"), ("tflite", "int8"))
        }
    int8_model, images = models["tflite"], dataset.held_out[1].images[:AGREEMENT_IMAGES]
    return {
        "dataset": dataset.title,
        "images": {"train": len(dataset.train)} | {name: len(split) for name, split in splits.items()},
        "accuracy": accuracies,
        **({"top5_accuracy": top5} if top5 else {}),
        "confusion": matrices,
        "macs": count_macs(models["float"]),
        "params": count_params(models["float"]),
        "size_bytes": int8_model.size_bytes,
        "operators": sorted(set(int8_model.operators)),
        "tensor_types": sorted(int8_model.tensor_types),
        **({"agreement": dataclasses.asdict(agreement(models["qat"], int8_model, images))} if "qat" in models else {}),
    }
