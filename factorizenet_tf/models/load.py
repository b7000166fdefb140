"""Load a user's own Keras model, an object or a file, as the package takes it."""

import json
import os
import zipfile
from pathlib import Path

from .._keras import functional_model, keras
from ..pixels import Pixels
from .keras3 import INPUT, check_weights, is_other_float, rebuilt
from .keras3_file import held, load_keras3
from .native import use_native_kernels
from .tf_keras_file import load_tf_keras

__all__ = ["load_keras_model", "taken_in"]

# What stands in front of a net, and TFMOT cannot quantize.
IN_FRONT = "Rescaling Normalization RandomContrast RandomFlip RandomRotation RandomTranslation RandomZoom"
IN_FRONT = tuple(getattr(keras.layers, name) for name in IN_FRONT.split())


def taken_in(model: object, pixels: Pixels | None = None, size: int | None = None) -> keras.Model:
    """Give a user's model as the rest of the package takes it: flat, tf_keras, images in 0..1 in.

    A plain tf_keras model is returned as it is. A Keras 3 model, one with models, Rescaling or Normalization inside, one that
    takes other pixels, one of mixed precision and one of open size are rebuilt, with `from_keras3`'s arguments and errors. A model that was rebuilt
    before takes pixels in 0..1, and `pixels` and `size` are ignored.
    """
    if isinstance(model, keras.Model) and getattr(model, "input_names", None) == [INPUT]:
        pixels, size = None, None
    if pixels is None and size is None and isinstance(model, keras.Model):
        functional_model(model, "factorizenet_tf")
        if not any(isinstance(layer, (keras.Model, *IN_FRONT)) or is_other_float(layer) for layer in model.layers):
            return model
    return use_native_kernels(rebuilt(model, pixels or Pixels(), size))


def load_keras_model(path: str | os.PathLike, pixels: Pixels | None = None, size: int | None = None) -> keras.Model:
    """Load a whole Keras model that classifies images. No code in a file is run: it may have stock layers alone.

    Args:
        path: a .keras or .h5 file that tf_keras or Keras 3 wrote, or a SavedModel's folder of tf_keras's.
        pixels, size: as for `taken_in`.

    Raises:
        ValueError: it is damaged, a file of weights alone, of another Keras, has a layer or an activation that is not stock (the
            layer is named), or is no image classifier; or as `taken_in`.
    """
    path = Path(path)
    version = _keras_version(path)
    if version.startswith("3."):
        return taken_in(load_keras3(path), pixels, size)
    if version.partition(".")[0] not in ("", "2"):
        raise ValueError(
            f"{path} was saved by Keras {version[:20]}; save it with tf_keras (2) or Keras 3, which are read"
        )
    model = functional_model(load_tf_keras(path), "loading")
    model = taken_in(model, pixels, size)
    check_weights(model)
    input_, output = model.input_shape, model.output_shape
    is_classifier = isinstance(input_, tuple) and len(input_) == 4 and isinstance(output, tuple) and len(output) == 2
    if not is_classifier or None in input_[1:] or input_[3] not in (1, 3):
        raise ValueError(
            f"{path} takes {input_} and gives {output}; it must take images (batch, height, width, channels) of a fixed "
            "size (size= gives an open one) with 1 or 3 channels and give (batch, classes)"
        )
    return use_native_kernels(model)


def _keras_version(path) -> str:
    """The version of Keras that a .keras or .h5 file says it was saved by, or ""."""
    try:
        found = held(path, "metadata.json", "keras_version")
        return str(json.loads(found)["keras_version"] if isinstance(found, bytes) else found)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return ""
