"""From a spec to a tf_keras model."""

from __future__ import annotations

import os

from . import weights as weights_files
from ._keras import keras
from .baselines import ResNet8, resnet8
from .blocks import convolution_bn_relu6
from .grouped import use_native_kernels
from .spec import ModelSpec

__all__ = ["FactorizeNet", "build"]


def build(spec: ModelSpec | ResNet8) -> keras.Model:
    """The net of a spec (or of a baseline's), randomly initialised.

    Float images (batch, height, width, channels) in 0..1 in, logits (batch, num_classes) out; stock layers with the
    plan's names; grouped convolutions run TensorFlow's native kernels.
    """
    if isinstance(spec, ResNet8):
        return resnet8(input_shape=spec.input_shape, num_classes=spec.num_classes)
    inputs = keras.Input(spec.input_shape, name="image")
    x = inputs
    *convolutions, dense = spec.plan()
    for layer in convolutions:
        x = convolution_bn_relu6(layer, x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(dense.output_shape[2], name=dense.name)(x)
    return use_native_kernels(keras.Model(inputs, x, name=spec.name.replace("-", "_").replace(".", "_")))


def FactorizeNet(  # noqa: N802 (a model builder, named as keras.applications names them)
    level: int | tuple[int, ...] = 2,
    *,
    width: int = 16,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    weights: str | os.PathLike | None = None,
) -> keras.Model:
    """A FactorizeNet in the manner of keras.applications; arguments as for `ModelSpec`.

    Args:
        weights: None for random ones, or the path of a float weights file that `train` wrote.

    Raises:
        ValueError: the weights belong to another spec, or the file is damaged.
        FileNotFoundError: there is no such file.
    """
    spec = ModelSpec(level, width=width, input_shape=input_shape, num_classes=num_classes)
    model = build(spec)
    if weights is not None:
        weights_files.load_weights(model, weights, spec=spec)
    return model
