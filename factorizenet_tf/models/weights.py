"""Save a net's weights as .h5 with its spec and precision inside, and rebuild models from such files."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from .._keras import keras
from ..files import write_bytes
from ..spec import ModelSpec, ResNet8, spec_from_json
from .build import build
from .quantize import wrap_for_qat

__all__ = ["FactorizeNet", "copy_weights", "fingerprint", "is_weights_file", "load_model", "read_header"]
__all__ += ["save_weights"]


def load_model(
    path: str | os.PathLike, *, spec: ModelSpec | ResNet8 | None = None, precision: str | None = None
) -> keras.Model:
    """Rebuild the model of a weights file that `save_weights` wrote.

    Args:
        path: the .h5 file.
        spec, precision: what the file must hold; None: any.

    Returns:
        The float model, or the quantization-aware one if the file's precision is "int8".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has weights that are not finite (their layer is named), or belongs to another
            spec or precision; both are named.
    """
    held, held_precision = read_header(path)
    if precision not in (None, held_precision):
        needed = f"{precision} ones are needed (`train` writes float.h5 and qat.h5)"
        raise ValueError(f"{path} holds {held_precision} weights; {needed}")
    if spec not in (None, held):
        raise ValueError(f"{path} holds weights of {held}; the model is {spec}")
    model = build(held)
    if held_precision == "int8":
        model = wrap_for_qat(model)
    try:
        model.load_weights(path)
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit the model {model.name} ({error}); restore it from a copy") from None
    for layer in model.layers:
        if not all(np.isfinite(values).all() for values in layer.get_weights()):
            raise ValueError(
                f"{path} has weights in the layer {layer.name!r} that are not finite; train it again or restore it from a copy"
            )
    return model


def FactorizeNet(  # noqa: N802 (a model builder, named as keras.applications names them)
    level: int | tuple[int, ...] = 2,
    *,
    width: int = 16,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    num_classes: int = 10,
    weights: str | os.PathLike | None = None,
) -> keras.Model:
    """Build a FactorizeNet in the manner of keras.applications; arguments as for `ModelSpec`.

    Args:
        weights: None for random ones, or the path of a float weights file that `train` wrote.

    Raises:
        ValueError: the weights belong to another spec, or the file is damaged.
        FileNotFoundError: there is no such file.
    """
    spec = ModelSpec(level, width=width, input_shape=input_shape, num_classes=num_classes)
    return build(spec) if weights is None else load_model(weights, spec=spec, precision="float")


def save_weights(model, path: str | os.PathLike, *, spec, precision: str) -> None:
    """Write a model's weights, whole or not at all.

    Args:
        model: tf_keras model built from `spec`, quantize-wrapped where precision is "int8".
        path: the .h5 file.
        spec: what the model was built from.
        precision: "float" or "int8" (quantization-aware weights).
    """
    import h5py
    from tf_keras.src.saving.legacy.hdf5_format import save_weights_to_hdf5_group

    content = io.BytesIO()  # on a full disk HDF5 itself crashes the process
    with h5py.File(content, "w") as file:
        save_weights_to_hdf5_group(file, model)
        file.attrs["factorizenet_spec"] = spec.to_json()
        file.attrs["factorizenet_precision"] = precision
    write_bytes(path, content.getvalue())


def is_weights_file(path: str | os.PathLike) -> bool:
    """Whether a file is one that `save_weights` wrote, by its header."""
    import h5py

    if not Path(path).is_file() or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return "factorizenet_spec" in file.attrs


def read_header(path: str | os.PathLike) -> tuple[ModelSpec, str]:
    """Read the spec and the precision ("float" or "int8") in a weights file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not written by `save_weights`.
    """
    import h5py

    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights file {path}; `factorizenet train` writes float.h5 and qat.h5")
    try:
        with h5py.File(path, "r") as file:
            header = dict(file.attrs)
    except OSError as error:
        reason = f"is damaged or no HDF5 file ({error})"
        raise ValueError(f"{path} {reason}; train it again or restore it from a copy") from None
    if "factorizenet_spec" not in header:
        raise ValueError(
            f"{path} has no spec inside, so it is no weights file of this package; `factorizenet train` writes float.h5 and qat.h5"
        )
    spec, precision = header["factorizenet_spec"], header.get("factorizenet_precision")
    if not isinstance(spec, str):
        raise ValueError(f"{path} has the spec {spec!r}, which is not text; restore the file from a copy")
    if not isinstance(precision, str) or precision not in ("float", "int8"):
        raise ValueError(f"{path} has the precision {precision!r}; it must be float or int8: restore it from a copy")
    return spec_from_json(spec), precision


def copy_weights(source, model, *, head: str | None = None) -> list[str]:
    """Copy a model's weights into another of the same layers, by name; a head of another class count stays as it is.

    Args:
        source, model: float tf_keras models.
        head: name of the layer that may differ; None: the last one with weights.

    Returns:
        The names of the layers that were not copied.

    Raises:
        ValueError: a layer other than the head is missing in the source or has other shapes.
    """
    source_layers = {layer.name: layer for layer in source.layers}
    weighted, not_copied = [layer for layer in model.layers if layer.weights], []
    head = weighted[-1].name if head is None else head
    for layer in weighted:
        values = source_layers[layer.name].get_weights() if layer.name in source_layers else []
        given, needed = [v.shape for v in values], [tuple(w.shape) for w in layer.weights]
        if given == needed:
            layer.set_weights(values)
        elif layer.name == head:
            not_copied.append(layer.name)
        else:
            raise ValueError(
                f"the weights to start from do not fit: the layer {layer.name!r} needs {needed}, {source.name!r} has "
                f"{given or 'no such layer'}; use a spec of the same level, width, stages and image channels"
            )
    return not_copied


def fingerprint(model) -> str:
    """Hash all weights of a model, in order, by SHA-256."""
    digest = hashlib.sha256()
    for array in model.get_weights():
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
