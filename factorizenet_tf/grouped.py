"""Grouped convolutions at the CPU's native speed.

tf_keras compiles each grouped convolution with XLA, which on the CPU is 20 to 100 times slower than TensorFlow's own
kernel. Replacing the compiled method on a layer object leaves tf_keras and everybody else's layers as they are.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np

from ._keras import keras, tf

__all__ = ["has_native_gradient", "in_fewer_groups", "use_native_kernels"]

CHANNELS_OF_A_GROUP = 16  # a vector of AVX-512: below it oneDNN's float kernels are slower than with zeros filled in


@functools.cache
def has_native_gradient() -> bool:
    """Whether TensorFlow can differentiate a grouped convolution here without XLA.

    On the CPU it can where oneDNN is on (the default on x86 Linux), tried once on a tiny tensor.
    """
    kernel = tf.ones((1, 1, 1, 2))
    try:
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            result = tf.nn.conv2d(tf.ones((1, 1, 1, 2)), kernel, 1, "SAME")
        tape.gradient(result, kernel)
    except (tf.errors.OpError, ValueError, NotImplementedError):
        return False
    return True


def use_native_kernels(model: keras.Model) -> keras.Model:
    """Have the grouped convolutions of a model run TensorFlow's kernel and not XLA's; gives the model back.

    Reaches layers inside quantization wrappers. A copy made from the model's config has the slow path again. Where
    there is no native gradient, nothing changes and a warning says what that costs.
    """
    convolutions = [layer for layer in map(_inner, model.layers) if hasattr(layer, "convolution_op")]
    grouped = [layer for layer in convolutions if layer.groups > 1]
    if grouped and not has_native_gradient():
        warnings.warn(
            "no native gradient for grouped convolutions (oneDNN is off or absent): they train through XLA, 20 to 100 "
            "times slower on a CPU; set TF_ENABLE_ONEDNN_OPTS=1 where the platform has it",
            RuntimeWarning,
            stacklevel=2,
        )
        return model
    for layer in grouped:
        layer._jit_compiled_convolution_op = layer.convolution_op
    return model


def in_fewer_groups(model: keras.Model) -> keras.Model:
    """A copy for inference whose grouped float convolutions have 16 channels a group or more, zeros between.

    The sums are the same. Source: our measurement; at level 4 and batch 64 on AVX-512 the net takes 0.7 of the time.
    Convolutions within quantization wrappers or nested models stay as they are; without others the model comes back.
    """
    from .lowering import block_dense

    grouped = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1]
    fewer = {layer.name: _fewer(layer) for layer in grouped}
    fewer = {name: groups for name, groups in fewer.items() if groups < model.get_layer(name).groups}
    if not fewer or any(isinstance(layer, keras.Model) for layer in model.layers):
        return model

    def copied(layer):
        config = layer.get_config()
        if layer.name in fewer:
            config["groups"] = fewer[layer.name]
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=copied)
    for layer in model.layers:
        weights = layer.get_weights()
        if layer.name in fewer:
            filters_first = np.moveaxis(weights[0], -1, 0)
            weights[0] = np.moveaxis(block_dense(filters_first, layer.groups, fewer[layer.name]), 0, -1)
        copy.get_layer(layer.name).set_weights(weights)
    return copy


def _fewer(layer) -> int:
    channels = layer.kernel.shape[-2] * layer.groups
    counts = [n for n in range(1, layer.groups + 1) if layer.groups % n == 0 and channels // n >= CHANNELS_OF_A_GROUP]
    return max(counts, default=1)


def _inner(layer: keras.layers.Layer) -> keras.layers.Layer:
    return layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
