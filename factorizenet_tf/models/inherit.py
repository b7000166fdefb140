"""A net that starts from the trained weights of a net of other levels."""

from __future__ import annotations

import numpy as np

from .._keras import keras
from ..spec import Layer, ModelSpec
from .build import build

__all__ = ["inherit", "regrouped"]


def inherit(parent: keras.Model, parent_spec: ModelSpec, spec: ModelSpec, *, seed: int = 0) -> keras.Model:
    """Build a float model of `spec` that starts from the weights of a trained one of the same width and macro-architecture.

    Stem, head and stages at the same level are copied. A stage at a finer level gets its kernels cut out of the
    coarser ones, one at a coarser level gets the finer kernels as the blocks of a block-diagonal one and computes the
    same function; pointwise convolutions and BatchNorm are copied. Between level 0, which has no pointwise
    convolution, and the others a stage starts anew.

    Args:
        parent: float model of `parent_spec`.
        parent_spec, spec: they differ in level alone.
        seed: of what starts anew.

    Raises:
        ValueError: they differ in more than level.
    """
    same = ("width", "input_shape", "num_classes", "macro")
    differing = [
        f"{k} ({getattr(parent_spec, k)}, {getattr(spec, k)})"
        for k in same
        if getattr(parent_spec, k) != getattr(spec, k)
    ]
    if differing:
        raise ValueError(f"{spec.name} cannot inherit from {parent_spec.name}: they differ in {', '.join(differing)}")
    keras.utils.set_random_seed(seed)
    model = build(spec)
    before = {layer.name: layer for layer in parent_spec.plan()}
    for layer in spec.plan():
        old = before.get(layer.name)
        if old is None or (old.groups == 1) != (layer.groups == 1):
            continue
        kernel = parent.get_layer(layer.name).get_weights()
        if old.groups != layer.groups:
            kernel = [_layout(regrouped(_layout(kernel[0], old), old.groups, layer.groups), layer)]
        model.get_layer(layer.name).set_weights(kernel)
        if layer.kind != "dense":
            model.get_layer(f"{layer.name}_bn").set_weights(parent.get_layer(f"{layer.name}_bn").get_weights())
    return model


def regrouped(kernel: np.ndarray, groups: int, new_groups: int) -> np.ndarray:
    """Rearrange a grouped convolution's kernel for other groups: weights within both are kept, others left out or 0.

    Args:
        kernel: (height, width, channels / groups, channels).
        groups, new_groups: divisors of the channels.

    Returns:
        (height, width, channels / new_groups, channels).
    """
    height, width, inputs, channels = kernel.shape
    new_inputs = channels // new_groups
    result = np.zeros((height, width, new_inputs, channels), kernel.dtype)
    for channel in range(channels):
        old_first, first = channel // inputs * inputs, channel // new_inputs * new_inputs
        low, high = max(old_first, first), min(old_first + inputs, first + new_inputs)
        result[:, :, low - first : high - first, channel] = kernel[:, :, low - old_first : high - old_first, channel]
    return result


def _layout(kernel: np.ndarray, layer: Layer) -> np.ndarray:
    """Swap between Conv2D's (height, width, 1, channels) and DepthwiseConv2D's (height, width, channels, 1); its own inverse."""
    return np.swapaxes(kernel, 2, 3) if layer.kind == "depthwise" else kernel
