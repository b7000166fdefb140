"""A net that starts from the trained weights of a net of other levels."""

from __future__ import annotations

import numpy as np

from .._keras import keras
from ..spec import Layer, ModelSpec
from ..tflite.regroup import regrouped
from .build import build

__all__ = ["inherit"]


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
            filters_first = np.moveaxis(kernel[0], _filters_axis(old), 0)
            kernel = [np.moveaxis(regrouped(filters_first, old.groups, layer.groups), 0, _filters_axis(layer))]
        model.get_layer(layer.name).set_weights(kernel)
        if layer.kind != "dense":
            model.get_layer(f"{layer.name}_bn").set_weights(parent.get_layer(f"{layer.name}_bn").get_weights())
    return model


def _filters_axis(layer: Layer) -> int:
    """Of Conv2D's kernel (height, width, channels / groups, filters), or DepthwiseConv2D's (height, width, channels, 1)."""
    return 2 if layer.kind == "depthwise" else 3
