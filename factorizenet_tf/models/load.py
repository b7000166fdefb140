"""Load a whole tf_keras model of the user's from a file."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from .._keras import functional_model, keras
from .native import use_native_kernels

__all__ = ["load_keras_model"]


def load_keras_model(path: str | os.PathLike) -> keras.Model:
    """Load a whole tf_keras model that classifies images. No Python code in a file is run: a Lambda layer is refused.

    Args:
        path: a .keras or .h5 file, or a SavedModel's folder, that tf_keras wrote.

    Raises:
        ValueError: it is damaged, Keras 3's, a file of weights alone, has a Lambda layer, or is no image classifier.
    """
    path = Path(path)
    saved_by = _keras_version(path)
    if saved_by.startswith("3."):
        raise ValueError(
            f"{path} was saved by Keras {saved_by}; TFMOT needs a tf_keras model: build it with `import tf_keras`, "
            "set its weights and save that"
        )
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    try:
        with SafeModeScope(True):  # load_model's own safe_mode is for .keras files alone
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # each format raises its own
        reason = str(error).strip().partition("\n")[0][:200]
        if "Lambda layer" in reason:
            raise _lambda_error(path) from None
        raise ValueError(
            f"{path} is no model that tf_keras can load ({reason}); save it with tf_keras as .keras or .h5"
        ) from None
    functional_model(model, "loading")
    if any(type(layer).__name__ == "Lambda" for layer in model.submodules):
        raise _lambda_error(path)
    input_, output = model.input_shape, model.output_shape
    is_classifier = isinstance(input_, tuple) and len(input_) == 4 and isinstance(output, tuple) and len(output) == 2
    if not is_classifier or None in input_[1:] or input_[3] not in (1, 3):
        raise ValueError(
            f"{path} takes {input_} and gives {output}; it must take images (batch, height, width, channels) of a fixed "
            "size with 1 or 3 channels and give (batch, classes)"
        )
    return use_native_kernels(model)


def _keras_version(path) -> str:
    """The version of Keras that a .keras or .h5 file says it was saved by, or ""."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                return json.loads(file.read("metadata.json"))["keras_version"]
        import h5py

        with h5py.File(path, "r") as file:
            return file.attrs.get("keras_version", "")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return ""


def _lambda_error(path) -> ValueError:
    return ValueError(f"{path} has a Lambda layer, whose code is not run from a file; replace it by stock layers")
