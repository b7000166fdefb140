"""Accuracy of a model on a split, and how far two models agree."""

from dataclasses import dataclass

import numpy as np

from ..data import Split, check_images
from ..tflite.int8_model import Int8Model, TFLiteModel

__all__ = ["TOP5_ABOVE", "Agreement", "accuracy", "agreement", "logits", "split_logits", "top5_accuracy"]

CHUNK = 500  # images that are floats in memory at a time
TOP5_ABOVE = 20  # classes; of nets with more, top-5 accuracy is measured, too


def logits(model, images: np.ndarray) -> np.ndarray:
    """Predict logits float32 (n, classes) of uint8 images (n, height, width, channels) by a tf_keras model or a TFLiteModel."""
    if isinstance(model, TFLiteModel):
        return model.predict(images)
    from .._keras import quiet_notices, to_float

    check_images(images, model.input_shape[1:])
    chunks = (images[i : i + CHUNK] for i in range(0, len(images), CHUNK))
    with quiet_notices():  # models in turn are taken for one that is traced again and again
        return np.concatenate([model.predict(to_float(chunk), batch_size=CHUNK, verbose=0) for chunk in chunks])


def accuracy(model, split: Split) -> float:
    """Measure the share, 0..1, of a split's images whose largest logit is their label's; model as for `logits`.

    Raises:
        ValueError: the model has fewer classes than the labels.
    """
    return float(np.mean(split_logits(model, split).argmax(1) == split.labels))


def split_logits(model, split: Split) -> np.ndarray:
    """Predict the logits of a split's images, (n, classes). Raises as `accuracy`."""
    scores = logits(model, split.images)
    largest, classes = split.labels.max(), scores.shape[1]
    if largest >= classes:
        remedy = "give data of its classes"
        if classes == 1:
            remedy = "a net of one output, as for a sigmoid, is no classifier here: give it one output a class"
        raise ValueError(
            f"the data has labels up to {largest}; the model has {classes} classes (num_classes); {remedy}"
        )
    return scores


def top5_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Compute top-5 accuracy, 0..1: the share of images whose label is among their five largest logits.

    `scores` are logits (n, classes), `labels` int (n,); among equal logits the lower class numbers count as larger.
    """
    return float((np.argsort(-scores, 1, kind="stable")[:, :5] == labels[:, None]).any(1).mean())


@dataclass(frozen=True)
class Agreement:
    """How far an int8 .tflite agrees with the quantization-aware Keras model that it was converted from.

    One LSB is a step of the .tflite's output scale.

    Args:
        top1: share of images with the same class.
        within_1_lsb: share of all logits at most 1 LSB apart.
        largest_lsb: the largest distance of two logits.
        images: number of images compared.
    """

    top1: float
    within_1_lsb: float
    largest_lsb: int
    images: int


def agreement(model, int8_model: Int8Model, images: np.ndarray) -> Agreement:
    """Compare a quantization-aware Keras model with its int8 .tflite on uint8 images (n, height, width, channels)."""
    scale, zero_point = int8_model.output_quantization
    quantized = int8_model.predict_quantized(images).astype(np.int32)
    expected = np.clip(np.round(logits(model, images) / scale) + zero_point, -128, 127).astype(np.int32)
    distance = np.abs(quantized - expected)
    return Agreement(
        top1=float(np.mean(quantized.argmax(1) == expected.argmax(1))),
        within_1_lsb=float(np.mean(distance <= 1)),
        largest_lsb=int(distance.max()),
        images=len(images),
    )
