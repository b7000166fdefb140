"""Grouped convolutions at the CPU's native speed.

tf_keras compiles each grouped convolution with XLA, which on the CPU is 20 to 100 times slower than TensorFlow's own
kernel. Replacing the compiled method on a layer object leaves tf_keras and everybody else's layers as they are.
"""

from __future__ import annotations

import functools
import warnings

from ._keras import keras, tf

__all__ = ["has_native_gradient", "use_native_kernels"]


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
    grouped = [layer for layer in map(_inner, model.layers) if getattr(layer, "groups", 1) > 1]
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


def _inner(layer: keras.layers.Layer) -> keras.layers.Layer:
    return layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
