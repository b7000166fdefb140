"""Nets from specs, out of stock Keras layers."""

from __future__ import annotations

import re

from .._keras import keras
from ..spec import Layer, ModelSpec, ResNet8
from .native import use_native_kernels

__all__ = ["build", "convolution", "convolution_bn_relu6", "resnet8"]

INITIALIZER = "he_normal"
BN_MOMENTUM = 0.9  # settles within an epoch of a small data set, too


def convolution(layer: Layer) -> keras.layers.Layer:
    """Make the stock Keras convolution of a plan's layer, without bias (BatchNorm follows).

    Depthwise layers are DepthwiseConv2D: as Conv2D with groups they would not become TFLite's depthwise operator.
    """
    common = {
        "kernel_size": layer.kernel,
        "strides": layer.stride,
        "padding": "same",
        "use_bias": False,
        "name": layer.name,
    }
    if layer.kind == "depthwise":
        return keras.layers.DepthwiseConv2D(depthwise_initializer=INITIALIZER, **common)
    return keras.layers.Conv2D(layer.output_shape[2], groups=layer.groups, kernel_initializer=INITIALIZER, **common)


def convolution_bn_relu6(layer: Layer, x, shortcut=None):
    """Apply convolution, BatchNorm, the residual sum where there is one, and ReLU6.

    The sum stands before the activation, as in ResNet (arXiv 1512.03385): what a block hands on lies in 0..6 with and
    without it, so that an int8 step is 0.024 everywhere. Stages have sums where they are asked for: MobileNet
    (arXiv 1704.04861) has none, and a tensor that is added later is kept in RAM until then. Source: our choice.

    Args:
        layer: the plan's layer.
        x: symbolic tensor (batch, *layer.input_shape).
        shortcut: symbolic tensor (batch, *layer.output_shape) that is added, or None.

    Returns:
        Symbolic tensor (batch, *layer.output_shape).
    """
    x = convolution(layer)(x)
    x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{layer.name}_bn")(x)
    if shortcut is not None:
        x = keras.layers.Add(name=f"{layer.name}_add")([shortcut, x])
    return keras.layers.ReLU(6.0, name=f"{layer.name}_relu6")(x)


def build(spec: ModelSpec | ResNet8) -> keras.Model:
    """Build the net of a spec (or of a baseline's) with random weights.

    Float images (batch, height, width, channels) in 0..1 in, logits (batch, num_classes) out; stock layers with the
    plan's names; grouped convolutions run TensorFlow's native kernels.
    """
    if isinstance(spec, ResNet8):
        return resnet8(input_shape=spec.input_shape, num_classes=spec.num_classes)
    inputs = keras.Input(spec.input_shape, name="image")
    x = inputs
    *convolutions, dense = spec.plan()
    outputs = {}
    for layer in convolutions:
        x = outputs[layer.name] = convolution_bn_relu6(layer, x, outputs.get(layer.shortcut))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(dense.output_shape[2], name=dense.name)(x)
    return use_native_kernels(keras.Model(inputs, x, name=re.sub("[-.]", "_", spec.name)))


def resnet8(*, input_shape: tuple[int, int, int] = (32, 32, 3), num_classes: int = 10):
    """Build MLPerf Tiny's ResNet-8 as a tf_keras model that TFMOT quantizes.

    Float images (batch, height, width, channels) in 0..1 in, logits (batch, num_classes) out. Our two deviations:
    no softmax at the end and no L2 inside the layers (the recipe's weight decay does it).
    """
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
