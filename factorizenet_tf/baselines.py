"""Nets of others to compare with, from their published architecture, trained by the same recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["ResNet8", "resnet8"]


@dataclass(frozen=True, kw_only=True)
class ResNet8:
    """The spec of MLPerf Tiny's ResNet-8: 12.5 M MACs and 78 k parameters at 32x32.

    Source: Banbury et al., arXiv 2106.07597, image classification; a ResNet v1 (He et al., 1512.03385) of three stacks.
    """

    input_shape: tuple[int, int, int] = (32, 32, 3)
    num_classes: int = 10
    name: str = "baseline-resnet8"

    def to_json(self) -> str:
        """The spec as JSON that `spec_from_json` reads back."""
        fields = {"family": "resnet8", "input_shape": self.input_shape, "num_classes": self.num_classes}
        return json.dumps(fields, indent=2) + "\n"


def resnet8(*, input_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10):
    """MLPerf Tiny's ResNet-8 as a tf_keras model that TFMOT quantizes.

    Float images (batch, height, width, channels) in 0..1 in, logits (batch, num_classes) out. Our two deviations:
    no softmax at the end and no L2 inside the layers (the recipe's weight decay does it).
    """
    from ._keras import keras
    from .blocks import BN_MOMENTUM

    layers = keras.layers

    def convolution(x, filters, kernel, stride, name):
        return layers.Conv2D(filters, kernel, stride, padding="same", kernel_initializer="he_normal", name=name)(x)

    def normalized(x, filters, stride, name, activation):
        x = convolution(x, filters, 3, stride, name)
        x = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if activation else x

    inputs = keras.Input(input_shape, name="image")
    x = normalized(inputs, 16, 1, "stem", True)
    for number, filters in enumerate((16, 32, 64), 1):
        stride = 1 if number == 1 else 2
        y = normalized(x, filters, stride, f"stack{number}_conv1", True)
        y = normalized(y, filters, 1, f"stack{number}_conv2", False)
        if stride == 2:
            x = convolution(x, filters, 1, stride, f"stack{number}_shortcut")
        x = layers.Add(name=f"stack{number}_add")([x, y])
        x = layers.ReLU(name=f"stack{number}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(num_classes, name="logits")(x), name="baseline_resnet8")
