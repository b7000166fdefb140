"""Accuracy of a model on a split, and how far two models agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data import Split, check_images
from ..tflite.int8_model import Int8Model, TFLiteModel

__all__ = ["Agreement", "accuracy", "agreement", "logits", "predicted_classes"]

CHUNK = 2_500  # images that are floats in memory at a time


def logits(model, images: np.ndarray) -> np.ndarray:
    """Predict logits float32 (n, classes) of uint8 images (n, height, width, channels) by a tf_keras model or a TFLiteModel."""
    if isinstance(model, TFLiteModel):
        return model.predict(images)
    from .._keras import to_float

    check_images(images, model.input_shape[1:])
    chunks = (images[i : i + CHUNK] for i in range(0, len(images), CHUNK))
    return np.concatenate([model.predict(to_float(chunk), batch_size=500, verbose=0) for chunk in chunks])


def accuracy(model, split: Split) -> float:
    """Measure the share, 0..1, of a split's images whose largest logit is their label's; model as for `logits`.

    Raises:
        ValueError: the model has fewer classes than the labels.
    """
    return float(np.mean(predicted_classes(model, split) == split.labels))


def predicted_classes(model, split: Split) -> np.ndarray:
    """Give the class of the largest logit of each image, int (n,). Raises as `accuracy`."""
    scores = logits(model, split.images)
    if split.labels.max() >= scores.shape[1]:
        raise ValueError(
            f"the data has labels up to {split.labels.max()}; the model has {scores.shape[1]} classes (num_classes)"
        )
    return scores.argmax(1)


@dataclass(frozen=True)
class Agreement:
    """An int8 .tflite against the quantization-aware Keras model it was converted from, on `images` images.

    One LSB is a step of the .tflite's output scale.

    Args:
        top1: share of images with the same class.
        within_1_lsb: share of all logits at most 1 LSB apart.
        largest_lsb: the largest distance.
        images: how many.
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
