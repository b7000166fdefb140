"""Grouped convolutions at the CPU's native speed.

tf_keras compiles each grouped convolution with XLA, which on the CPU is 20 to 100 times slower than TensorFlow's own
kernel. Replacing the compiled method on a layer object leaves tf_keras and everybody else's layers as they are.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator

import numpy as np

from .._keras import keras, tf, unwrap

__all__ = [
    "has_native_gradient",
    "in_fewer_groups",
    "inference_kernels",
    "use_native_kernels",
    "warn_without_native_gradient",
]

CHANNELS_OF_A_GROUP = 16  # a vector of AVX-512: below it oneDNN's float kernels are slower than with zeros filled in


@functools.cache
def has_native_gradient() -> bool:
    """Whether TensorFlow can differentiate a grouped convolution here without XLA, tried once on a tiny tensor.

    On the CPU it can where oneDNN is on. TensorFlow switches it on by itself only on x86 processors with AVX512-VNNI or
    AMX; this package does so on all others, unless TensorFlow was imported first or TF_ENABLE_ONEDNN_OPTS is 0.
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
    """Have the grouped convolutions of a model run TensorFlow's kernels and not XLA's; gives the model back.

    Where there is no native gradient the kernel is made block-dense in the graph: zeros between the groups, about as
    fast as a regular convolution. Reaches layers inside quantization wrappers. A copy made from the model's config has
    the slow path again.
    """
    convolution = _native if has_native_gradient() else _block_dense
    for layer in _grouped_layers(model):
        layer._jit_compiled_convolution_op = functools.partial(convolution, layer)
    return model


@contextlib.contextmanager
def inference_kernels(model: keras.Model) -> Iterator[None]:
    """Within the block the grouped convolutions of a model run TensorFlow's grouped kernel, gradient or not.

    What is traced here goes into a file, whose convolutions shall have their own groups and bytes.
    """
    layers = _grouped_layers(model)
    before = [vars(layer).get("_jit_compiled_convolution_op") for layer in layers]
    try:
        for layer in layers:
            layer._jit_compiled_convolution_op = functools.partial(_native, layer)
        yield
    finally:
        for layer, convolution in zip(layers, before):
            if convolution is None:
                del layer._jit_compiled_convolution_op
            else:
                layer._jit_compiled_convolution_op = convolution


def warn_without_native_gradient(model: keras.Model) -> None:
    """Warn, once a process, that a model with grouped convolutions trains slower here than it could."""
    if _grouped_layers(model) and not has_native_gradient():
        warnings.warn(
            "no native gradient for grouped convolutions (oneDNN is off or absent): they train as regular ones of the same "
            "size, up to twice as slow; set TF_ENABLE_ONEDNN_OPTS=1 where the platform has it, or import factorizenet_tf "
            "before tensorflow",
            RuntimeWarning,
            stacklevel=1,  # this line, so that Python's default filter shows it once
        )


def _native(layer, inputs, kernel):
    return layer.convolution_op(inputs, kernel)


def _block_dense(layer, inputs, kernel):
    channels, filters = kernel.shape[-2:]
    group_of_channel = np.arange(channels * layer.groups) // channels
    group_of_filter = np.arange(filters) // (filters // layer.groups)
    mask = tf.constant(group_of_channel[:, None] == group_of_filter, kernel.dtype)
    repeats = [1] * (len(kernel.shape) - 2) + [layer.groups, 1]
    return layer.convolution_op(inputs, tf.tile(kernel, repeats) * mask)


def _grouped_layers(model) -> list[keras.layers.Layer]:
    convolutions = [layer for layer in map(unwrap, model.layers) if hasattr(layer, "convolution_op")]
    return [layer for layer in convolutions if layer.groups > 1]


def in_fewer_groups(model: keras.Model) -> keras.Model:
    """A copy for inference whose grouped float convolutions have 16 channels a group or more, zeros between.

    The sums are the same. Source: our measurement; at level 4 and batch 64 on AVX-512 the net takes 0.7 of the time.
    Convolutions within quantization wrappers or nested models stay as they are; without others the model comes back.
    """
    from ..tflite.regroup import block_dense

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
