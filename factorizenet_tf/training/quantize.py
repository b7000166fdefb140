"""Quantize a user's own model after training (PTQ) or with training (QAT)."""

import contextlib
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np

from .._keras import keras
from ..console import Progress
from ..cost import cost_rows
from ..data import Dataset
from ..files import write_bytes
from ..models.convert import to_tflite
from ..models.keras3 import check_weights
from ..models.load import taken_in
from ..models.quantize import is_quantize_aware, quantize_aware, with_softmax, without_softmax
from ..models.weights import fingerprint
from ..recipe import Recipe
from ..runs import CHECKPOINT_FILE, TFLITE_FILE, open_run_folder, write_metrics
from ..tflite.int8_model import Int8Model
from .loop import TrainingLoop
from .train import check_batch, check_data, conversion_of, measure

__all__ = ["CAREFUL", "quantize_own"]

METHODS = ("qat", "ptq", "ptq-per-tensor")
# For a net trained by another recipe: low rate, and no augmentation or smoothing that it may not have been trained with.
CAREFUL = {"qat_learning_rate": 0.001, "label_smoothing": 0, "weight_decay": 0, "crop_padding": 0, "flip": False}
LEAST_AGREEMENT, LARGEST_STEPS = 0.98, 16  # of a .tflite with its QAT model; beyond these a warning is given
FALL = 0.02  # of the validation accuracy from float to int8, from which on a warning is given


def quantize_own(
    model: keras.Model,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    method: str = "qat",
    recipe: Recipe | None = None,
    keep_names: bool = False,
    callbacks=(),
    verbose: bool = True,
) -> dict:
    """Quantize a trained float model to an int8 .tflite and measure both.

    Args:
        model: functional or sequential tf_keras model, images in 0..1 in, logits or probabilities out; or any model that
            `from_keras3` can rebuild as one. QAT trains the logits before a softmax, which is put back afterwards.
        dataset: its data; the images' shape and the number of classes must be the model's.
        out: folder for model.tflite, metrics.json and, under QAT, checkpoint.npz and history.csv: the same call
            continues after a kill.
        method: "qat" (fine-tunes for `recipe.qat_epochs`), "ptq" or "ptq-per-tensor".
        recipe: for QAT, and for the number of calibration images; None: the defaults with `CAREFUL`.
        keep_names: as for `to_tflite`.
        callbacks, verbose: as for `train`.

    Returns:
        metrics.json as a dict: accuracy (0..1) on validation and test of the float model, of the .tflite and, with QAT, of the
        quantization-aware model; costs; with QAT, how far the .tflite agrees with that model. Warnings are given if they
        disagree, and if the accuracy fell by FALL or more.

    Raises:
        ValueError, TypeError, OSError, DivergedError: as `train` and `quantize_aware`.
    """
    recipe = recipe or Recipe(**CAREFUL)
    float_model = model = taken_in(model)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if is_quantize_aware(model):
        raise ValueError(f"the model {model.name!r} is quantization-aware already; give the float one")
    check_data(dataset, model.input_shape[1:], model.output_shape[-1])
    if method == "qat":
        check_batch(dataset, recipe)
        if not recipe.qat_epochs:
            raise ValueError("qat_epochs is 0, so nothing would be trained; give 1 or more, or use method ptq")
    check_weights(model)
    cost_rows(model)  # raises on a layer that nobody can count
    calibration = dataset.calibration(recipe.calibration_images)
    quantized = None
    if method == "qat":  # what the model cannot do shows before anything is written
        model = without_softmax(model)
        quantized = quantize_aware(model, calibration=calibration)
    folder = Path(out)
    identity = {"family": "own", "method": method, "name": model.name, "weights": fingerprint(float_model)}
    options = {"labels": dataset.class_names, "resize": dataset.resize, "keep_names": keep_names}
    with Progress(verbose) as progress, _released(folder):
        open_run_folder(folder, dataset, recipe, json.dumps(identity, indent=2) + "\n")
        if quantized is not None:
            loop = TrainingLoop(folder, model.name, dataset, recipe, tuple(callbacks), progress)
            loop.fit("qat", quantized)
            quantized = quantized if model is float_model else with_softmax(quantized)
            with conversion_of(loop):
                content = to_tflite(quantized, **options)
                models = {"float": float_model, "qat": quantized, "tflite": Int8Model(content)}
        else:
            content = to_tflite(model, calibration=calibration, per_channel=method == "ptq", **options)
            models = {"float": float_model, "tflite": Int8Model(content)}
        write_bytes(folder / TFLITE_FILE, content)
        metrics = {"name": model.name, "method": method, **measure(models, dataset, progress)}
        write_metrics(folder, metrics)
    _warn(metrics, model)
    return metrics


@contextlib.contextmanager
def _released(folder):
    """Remove a new folder if the block fails before its first epoch is done, so that its name is free again; empty one that was."""
    was_there = folder.is_dir()
    is_new = not was_there or not any(folder.iterdir())
    try:
        yield
    except BaseException:
        if is_new and folder.is_dir() and not (folder / CHECKPOINT_FILE).exists():
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if not was_there:
                folder.rmdir()
        raise


def _warn(metrics, model):
    """Warn of a .tflite that is another net than its QAT model, and of an accuracy that fell."""
    found, accuracy = metrics.get("agreement"), metrics["accuracy"]["validation"]
    share = 1.0 if found is None else max(found["top1"], found["within_1_lsb"])  # of many classes one step may decide
    if share < LEAST_AGREEMENT or (found is not None and found["largest_lsb"] > LARGEST_STEPS):
        dead = [layer.name for layer in model.layers if _has_dead_filters(layer)]
        where = f"; filters of zeros in {', '.join(dead)} leave no scale for their biases" if dead else ""
        warnings.warn(
            f"the .tflite gives the class of its QAT model on {100 * found['top1']:.1f} % of the images, logits up to "
            f"{found['largest_lsb']} steps apart{where}; use method ptq, or prune such filters",
            RuntimeWarning,
            stacklevel=3,
        )
    if accuracy["float"] - accuracy["tflite"] >= FALL:
        is_qat = metrics["method"] == "qat"
        remedy = "a lower qat_learning_rate, more qat_epochs, or method ptq" if is_qat else "method qat"
        warnings.warn(
            f"the validation accuracy fell from {100 * accuracy['float']:.1f} % in float to {100 * accuracy['tflite']:.1f} % "
            f"in int8; try {remedy}",
            RuntimeWarning,
            stacklevel=3,
        )


def _has_dead_filters(layer) -> bool:
    """Whether a convolution or dense layer has filters of zeros beside others."""
    kernel = next(iter(layer.get_weights()), None) if hasattr(layer, "use_bias") else None
    if kernel is None or kernel.ndim not in (2, 4):
        return False
    largest = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0)
    return bool((largest < 1e-6 * largest.max()).any())
