"""From one layer of a plan to stock Keras layers."""

from __future__ import annotations

from ._keras import keras
from .spec import Layer

__all__ = ["convolution", "convolution_bn_relu6"]

INITIALIZER = "he_normal"
BN_MOMENTUM = 0.9  # settles within an epoch of a small data set, too


def convolution(layer: Layer) -> keras.layers.Layer:
    """The stock Keras convolution of a plan's layer, without bias (BatchNorm follows).

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


def convolution_bn_relu6(layer: Layer, x):
    """Convolution, BatchNorm, ReLU6.

    There are no residual sums, as in MobileNet (arXiv 1704.04861): each tensor lies in 0..6, so that an int8 step is
    0.024 everywhere and rounding is not amplified, and none is kept in RAM for later. Source: our choice; trained 45
    epochs, nets with and without them are equally accurate (tuner/results/README.md).

    Args:
        layer: the plan's layer.
        x: symbolic tensor (batch, *layer.input_shape).

    Returns:
        Symbolic tensor (batch, *layer.output_shape).
    """
    x = convolution(layer)(x)
    x = keras.layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{layer.name}_bn")(x)
    return keras.layers.ReLU(6.0, name=f"{layer.name}_relu6")(x)
