"""A user's own tf_keras model, quantized after or with training."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .._keras import functional_model, keras
from ..console import Progress
from ..cost import cost_rows
from ..data import Dataset
from ..files import write_bytes
from ..models.convert import to_tflite
from ..models.quantize import is_quantize_aware, quantize_aware
from ..models.weights import fingerprint
from ..recipe import Recipe
from ..runs import TFLITE_FILE, open_run_folder, write_metrics
from ..tflite.int8_model import Int8Model
from .loop import TrainingLoop
from .train import check_batch, check_data, conversion_of, measure

__all__ = ["quantize_own"]

METHODS = ("qat", "ptq", "ptq-per-tensor")


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
        model: functional or sequential tf_keras model, images in 0..1 in, logits or probabilities out.
        dataset: its data; the images' shape and the number of classes must be the model's.
        out: folder for model.tflite, metrics.json and, under QAT, checkpoint.npz and history.csv: the same call
            continues after a kill.
        method: "qat" (fine-tunes with `recipe.qat_epochs`; a model that ends in a softmax is refused, since the loss
            takes logits), "ptq" or "ptq-per-tensor".
        recipe: of QAT and of the number of calibration images.
        keep_names: as for `to_tflite`.
        callbacks, verbose: as for `train`.

    Returns:
        metrics.json as a dict: accuracy (0..1) of the float model and the .tflite on validation and test, and costs.

    Raises:
        ValueError, TypeError, OSError, DivergedError: as `train` and `quantize_aware`.
    """
    recipe = recipe or Recipe()
    _check_model(model, dataset, method)
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
    open_run_folder(folder, dataset, recipe, json.dumps(identity, indent=2) + "\n")
    options = {"labels": dataset.class_names, "keep_names": keep_names}
    with Progress(verbose) as progress:
        if quantized is not None:
            loop = TrainingLoop(folder, model.name, dataset, recipe, tuple(callbacks), progress)
            loop.fit("qat", quantized)
            with conversion_of(loop):
                content = to_tflite(quantized, **options)
                int8_model = Int8Model(content)
        else:
            content = to_tflite(model, calibration=calibration, per_channel=method == "ptq", **options)
            int8_model = Int8Model(content)
        models = {"float": model, "tflite": int8_model}
        write_bytes(folder / TFLITE_FILE, content)
        metrics = {"name": model.name, "method": method, **measure(models, dataset, progress)}
        write_metrics(folder, metrics)
    return metrics


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
