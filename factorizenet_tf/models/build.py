"""Nets from specs, out of stock Keras layers."""

import re

from .._keras import in_float32, keras
from ..spec import Architecture, Layer, ModelSpec, ResNet8
from .architecture import build_architecture
from .native import use_native_kernels

__all__ = ["build"]

INITIALIZER = "he_normal"
BN_MOMENTUM = 0.9  # settles within an epoch of a small data set, too


@in_float32()
def build(spec: ModelSpec | ResNet8 | Architecture) -> keras.Model:
    """Build the net of a spec (a baseline's or an architecture, too) with random weights.

    Float images (batch, height, width, channels) in 0..1 in, logits (batch, num_classes) out; stock layers with the
    plan's names; grouped convolutions run TensorFlow's native kernels.
    """
    if isinstance(spec, ResNet8):
        return _resnet8(spec)
    if isinstance(spec, Architecture):
        return use_native_kernels(build_architecture(spec))
    inputs = keras.Input(spec.input_shape, name="image")
    x = inputs
    *convolutions, dense = spec.plan()
    outputs = {}
    for layer in convolutions:
        x = outputs[layer.name] = _convolution_bn_relu6(layer, x, outputs.get(layer.shortcut))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(dense.output_shape[2], name=dense.name)(x)
    return use_native_kernels(keras.Model(inputs, x, name=re.sub("[-.]", "_", spec.name)))


def _convolution_bn_relu6(layer: Layer, x, shortcut):
    """Apply convolution (BatchNorm is its bias), BatchNorm, the residual sum where there is a shortcut, and ReLU6.

    Depthwise layers are DepthwiseConv2D: as Conv2D with groups they would not become TFLite's depthwise operator. The sum
    stands before the activation, as in ResNet (arXiv 1512.03385): a block's output lies in 0..6 with or without it, so that
    an int8 step is 0.024 everywhere. Sums are optional: MobileNet (arXiv 1704.04861) has none, and a tensor that is added
    later stays in RAM until then. Source: our choice.
    """
    layers, name = keras.layers, layer.name
    common = {"kernel_size": layer.kernel, "strides": layer.stride, "padding": "same", "use_bias": False, "name": name}
    if layer.kind == "depthwise":
        convolution = layers.DepthwiseConv2D(depthwise_initializer=INITIALIZER, **common)
    else:
        options = {"groups": layer.groups, "kernel_initializer": INITIALIZER}
        convolution = layers.Conv2D(layer.output_shape[2], **options, **common)
    x = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_bn")(convolution(x))
    if shortcut is not None:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.ReLU(6.0, name=f"{name}_relu6")(x)


def _resnet8(spec):
    """MLPerf Tiny's ResNet-8. Our two deviations: no softmax at the end, no L2 in the layers (the recipe's weight decay)."""
    layers = keras.layers

    def convolution(x, filters, kernel, stride, name):
        return layers.Conv2D(filters, kernel, stride, padding="same", kernel_initializer=INITIALIZER, name=name)(x)

    def normalized(x, filters, stride, name, activation):
        x = convolution(x, filters, 3, stride, name)
        x = layers.BatchNormalization(momentum=BN_MOMENTUM, name=f"{name}_bn")(x)
        return layers.ReLU(name=f"{name}_relu")(x) if activation else x

    inputs = keras.Input(spec.input_shape, name="image")
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
    return keras.Model(inputs, layers.Dense(spec.num_classes, name="logits")(x), name="baseline_resnet8")
