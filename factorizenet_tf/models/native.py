"""Grouped convolutions at the CPU's native speed.

tf_keras compiles each grouped convolution with XLA, which on the CPU is 20 to 100 times slower than TensorFlow's own
kernel. Replacing the compiled method on a layer object leaves tf_keras and everybody else's layers as they are.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import numpy as np

from .._keras import keras, tf, unwrap

__all__ = ["has_native_gradient", "inference_kernels", "use_native_kernels", "warn_without_native_gradient"]


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


def use_native_kernels(model: keras.Model | keras.layers.Layer) -> keras.Model | keras.layers.Layer:
    """Let a model's grouped convolutions, or a layer that is one, run TensorFlow's kernels and not XLA's.

    Without a native gradient the kernel is made block-dense in the graph: zeros between the groups, about as fast as a
    regular convolution. Layers inside quantization wrappers are included. A copy made from the model's config runs XLA's
    kernels again.

    Returns:
        The model or layer.
    """
    for layer in _grouped_layers(model):
        groups = layer.groups if has_native_gradient() else 1
        layer._jit_compiled_convolution_op = functools.partial(_convolve, layer, groups)
    return model


@contextlib.contextmanager
def inference_kernels(model: keras.Model, *, channels: int = 1) -> Iterator[None]:
    """Let a model's grouped convolutions run TensorFlow's grouped kernel within the block, whether it has a gradient or not.

    For graphs that are traced into a file, whose convolutions must keep their own groups and bytes.

    Args:
        model: as for `use_native_kernels`.
        channels: join groups, with zeros between them, until each has at least this many channels; the sums are the same.
    """
    layers = _grouped_layers(model)
    before = [vars(layer).get("_jit_compiled_convolution_op") for layer in layers]
    try:
        for layer in layers:
            inside, counts = layer.kernel.shape[-2], range(layer.groups, 0, -1)
            wide = (n for n in counts if layer.groups % n == 0 and inside * layer.groups // n >= channels)
            layer._jit_compiled_convolution_op = functools.partial(_convolve, layer, next(wide, 1))
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


def _convolve(layer, groups, inputs, kernel):
    """Convolve in `groups`, a divisor of the layer's own number; groups that become one have zeros between them."""
    joined = layer.groups // groups
    if joined > 1:
        inside, filters = kernel.shape[-2:]
        group_of_channel = np.arange(inside * joined) // inside
        group_of_filter = np.arange(filters) // (filters // layer.groups) % joined
        mask = tf.constant(group_of_channel[:, None] == group_of_filter, kernel.dtype)
        kernel = tf.tile(kernel, [1] * (len(kernel.shape) - 2) + [joined, 1]) * mask
    return layer.convolution_op(inputs, kernel)


def _grouped_layers(model) -> list[keras.layers.Layer]:
    layers = map(unwrap, getattr(model, "layers", [model]))
    return [layer for layer in layers if hasattr(layer, "convolution_op") and layer.groups > 1]
