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
    """Within the block a model computes by the operators that a file shall have, gradient or not.

    Grouped convolutions have their own groups and bytes. A dilated one is one operator, where Keras rearranges the image
    around it. A ReLU whose output is quantized leaves its limit to that: its range ends there.

    Args:
        model: as for `use_native_kernels`.
        channels: join groups, with zeros between them, until each has at least this many channels; the sums are the same.
    """
    changes = []
    for layer in _grouped_layers(model):
        inside, counts = layer.kernel.shape[-2], range(layer.groups, 0, -1)
        wide = (n for n in counts if layer.groups % n == 0 and inside * layer.groups // n >= channels)
        changes.append((layer, "_jit_compiled_convolution_op", functools.partial(_convolve, layer, next(wide, 1))))
    for wrapper in model.layers:
        layer, kind = unwrap(wrapper), type(unwrap(wrapper)).__name__
        if kind in DILATED and max(layer.dilation_rate) > 1:
            changes.append((layer, DILATED[kind][0], functools.partial(DILATED[kind][1], layer)))
        elif kind == "ReLU" and _ends_in_range(layer, wrapper):
            changes.append((layer, "max_value", None))
    before = [{name: vars(layer)[name]} if name in vars(layer) else {} for layer, name, _ in changes]
    try:
        for change in changes:
            setattr(*change)
        yield
    finally:
        for (layer, name, _), own in zip(changes, before):
            del vars(layer)[name]
            vars(layer).update(own)


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


def _dilated(layer, inputs, kernel):
    return tf.nn.conv2d(inputs, kernel, 1, layer.padding.upper(), dilations=list(layer.dilation_rate))


def _dilated_depthwise(layer, inputs):
    options = {"strides": [1] * 4, "padding": layer.padding.upper(), "dilations": [1, *layer.dilation_rate, 1]}
    result = tf.raw_ops.DepthwiseConv2dNative(input=inputs, filter=layer.depthwise_kernel, **options)
    return layer.activation(result + layer.bias if layer.use_bias else result)


def _ends_in_range(relu, wrapper) -> bool:
    """Whether the range that a ReLU's output is quantized to ends at its limit or below."""
    if relu.max_value is None or relu.negative_slope or not getattr(wrapper, "_output_quantizers", None):
        return False
    return bool(wrapper._output_quantizer_vars["max_var"].numpy() <= relu.max_value)


# The method of a layer by which it convolves, and what takes its place in a file where it is dilated.
DILATED = {"Conv2D": ("convolution_op", _dilated), "DepthwiseConv2D": ("call", _dilated_depthwise)}


def _grouped_layers(model) -> list[keras.layers.Layer]:
    layers = map(unwrap, getattr(model, "layers", [model]))
    return [layer for layer in layers if hasattr(layer, "convolution_op") and layer.groups > 1]
