"""A user's own tf_keras model, quantized after or with training, and tuned before where it has a teacher."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .._keras import functional_model, keras
from ..console import Progress
from ..cost import cost_rows
from ..data import Dataset
from ..files import atomic_write, write_bytes
from ..models.convert import to_tflite
from ..models.load import load_keras_model
from ..models.native import use_native_kernels
from ..models.quantize import is_quantize_aware, quantize_aware
from ..models.weights import fingerprint
from ..recipe import Recipe
from ..runs import TFLITE_FILE, open_run_folder, write_metrics
from ..tflite.int8_model import Int8Model
from .loop import TrainingLoop
from .train import check_batch, check_data, conversion_of, measure

__all__ = ["TUNING", "quantize_own"]

METHODS = ("qat", "ptq", "ptq-per-tensor")
TUNED_FILE = "tuned.keras"
# Of a net that nearly does what it shall: a fraction of a training's epochs, at a low rate.
TUNING = {"epochs": 5, "qat_epochs": 1, "learning_rate": 0.02, "warmup_epochs": 0, "label_smoothing": 0}


def quantize_own(
    model: keras.Model,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    method: str = "qat",
    recipe: Recipe | None = None,
    teacher: keras.Model | None = None,
    keep_names: bool = False,
    callbacks=(),
    verbose: bool = True,
) -> dict:
    """Quantize a trained float model to an int8 .tflite and measure both.

    Args:
        model: functional or sequential tf_keras model, images in 0..1 in, logits or probabilities out.
        dataset: its data; the images' shape and the number of classes must be the model's.
        out: folder for model.tflite, metrics.json and, under QAT, checkpoint.npz and history.csv: the same call
            continues after a kill.
        method: "qat" (fine-tunes with `recipe.qat_epochs`; a model that ends in a softmax is refused, since the loss
            takes logits), "ptq" or "ptq-per-tensor".
        recipe: of QAT and of the number of calibration images; with a teacher of the float phase, too. None: the defaults,
            `TUNING` with a teacher.
        teacher: another float model of the same images and classes, such as the one that this was factorized from; needs
            "qat". First `recipe.epochs` of float training, then QAT, by its logits beside the labels. The tuned float model
            is `tuned.keras`.
        keep_names: as for `to_tflite`.
        callbacks, verbose: as for `train`.

    Returns:
        metrics.json as a dict: accuracy (0..1) of the float model and the .tflite on validation and test, and costs.

    Raises:
        ValueError, TypeError, OSError, DivergedError: as `train` and `quantize_aware`.
    """
    recipe = recipe or Recipe(**(TUNING if teacher is not None else {}))
    _check_model(model, dataset, method)
    if teacher is not None:
        if method != "qat":
            raise ValueError(
                f"method is {method!r}, which trains nothing, so a teacher would have no effect; leave it out"
            )
        _check_model(teacher, dataset, method)
    if method == "qat":
        check_batch(dataset, recipe)
        if not recipe.qat_epochs:
            raise ValueError("qat_epochs is 0, so that nothing would be trained; give 1 or more, or use method ptq")
    cost_rows(model)  # raises on a layer that nobody can count
    calibration = dataset.calibration(recipe.calibration_images)
    # What the model cannot do shows before anything is written.
    quantized = quantize_aware(model, calibration=calibration) if method == "qat" else None
    folder = Path(out)
    identity = {"family": "own", "method": method, "name": model.name, "weights": fingerprint(model)}
    if teacher is not None:
        identity["teacher"] = fingerprint(teacher)
    open_run_folder(folder, dataset, recipe, json.dumps(identity, indent=2) + "\n")
    options = {"labels": dataset.class_names, "keep_names": keep_names}
    with Progress(verbose) as progress:
        if quantized is not None:
            loop = TrainingLoop(folder, model.name, dataset, recipe, tuple(callbacks), progress, teacher)
            if teacher is not None:
                model, quantized = _tuned(loop, model, calibration)
            loop.fit("qat", quantized)
            with conversion_of(loop):
                content = to_tflite(quantized, **options)
                int8_model = Int8Model(content)
        else:
            content = to_tflite(model, calibration=calibration, per_channel=method == "ptq", **options)
            int8_model = Int8Model(content)
        models = {"float": model, "tflite": int8_model} | ({} if teacher is None else {"teacher": teacher})
        write_bytes(folder / TFLITE_FILE, content)
        metrics = {"name": model.name, "method": method, **measure(models, dataset, progress)}
        write_metrics(folder, metrics)
    return metrics


def _tuned(loop, model, calibration):
    """Train a copy of a float model to its end; give it and its quantization-aware self."""
    path = loop.folder / TUNED_FILE
    if loop.resumes("float") and path.exists():
        tuned = load_keras_model(path)
    else:
        tuned = use_native_kernels(keras.models.clone_model(model))
        tuned.set_weights(model.get_weights())
        loop.fit("float", tuned)
        with atomic_write(path) as aside:
            tuned.save(aside, save_format="keras")
    return tuned, quantize_aware(tuned, calibration=calibration)


def _check_model(model, dataset, method):
    functional_model(model, "quantize")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if is_quantize_aware(model):
        raise ValueError(f"the model {model.name!r} is quantization-aware already; give the float one")
    check_data(dataset, model.input_shape[1:], model.output_shape[-1])
    if method == "qat" and _ends_in_softmax(model):
        raise ValueError(
            f"the model {model.name!r} ends in a softmax; QAT trains on logits: give it without the softmax, or use ptq"
        )


def _ends_in_softmax(model) -> bool:
    last = model.layers[-1]
    return type(last).__name__ == "Softmax" or getattr(getattr(last, "activation", None), "__name__", "") == "softmax"
