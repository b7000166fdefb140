"""Read a Keras 3 model's file without running code in it.

The architecture is read as JSON and cut down to known layers and fields before Keras 3 gets it and reads the weights.
"""

import json
import os
import zipfile
from pathlib import Path

from . import architecture
from .architecture import unknown_layer

__all__ = ["FIELDS", "LEFT_OUT", "MODELS", "OPERATIONS", "fields_of", "held", "is_archive", "load_keras3", "named"]

# What an architecture knows, and what is rebuilt as some of that.
FIELDS = architecture.FIELDS | {
    "InputLayer": ("batch_shape", "batch_input_shape"),
    "LeakyReLU": ("negative_slope", "alpha"),
    "Normalization": ("axis", "mean", "variance", "invert"),
}
# Layers left out, since they do nothing at inference and are no part of a training here; and fields that say nothing here.
LEFT_OUT, UNUSED = (
    names.split()
    for names in (
        "ActivityRegularization AlphaDropout GaussianDropout GaussianNoise Identity RandomBrightness RandomContrast RandomFlip "
        "RandomRotation RandomTranslation RandomZoom SpatialDropout2D",
        "name trainable dtype seed synchronized renorm_momentum data_format noise_shape batch_input_shape",
    )
)
OF_TRAINING = ("_initializer", "_regularizer", "_constraint")
MODELS = ("Functional", "Sequential", "Model")
MODEL_FIELDS = ("name", "input_layers", "output_layers", "build_input_shape")
OPERATIONS = ("Add", "Subtract", "Multiply", "Divide", "TrueDivide")  # of keras.ops, behind x + y and the like


def load_keras3(path: str | os.PathLike):
    """Load a Keras 3 model's file, its architecture cut down to what the tables know before Keras 3 sees it.

    Raises:
        FileNotFoundError, ValueError: as `from_keras3`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}; give a .keras or .h5 file")
    try:
        config = json.loads(held(path, "config.json", "model_config"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged or no whole model of Keras 3's ({error}); save the model again") from None
    clean = _clean_model(config, str(path))
    import keras as keras3

    try:
        model = keras3.saving.deserialize_keras_object(clean, safe_mode=True)
        model.load_weights(path)
    except Exception as error:  # each of Keras, h5py and zipfile raises its own
        reason = str(error).strip().partition("\n")[0][:200]
        version = keras3.__version__
        raise ValueError(f"{path} cannot be read by Keras {version} ({reason}); save the model again with it") from None
    return model


def held(path: Path, name: str, attribute: str) -> str | bytes:
    """Read what a .keras file has in its archive, as bytes, or an .h5 file as an attribute, as text."""
    if is_archive(path):
        with zipfile.ZipFile(path) as file:
            return file.read(name)
    import h5py

    with h5py.File(path, "r") as file:
        return file.attrs[attribute]


def is_archive(path: Path) -> bool:
    """Whether a file is a .keras archive and not HDF5, as both Kerases tell them apart: it could be either at once."""
    return str(path).endswith(".keras") and zipfile.is_zipfile(path)


# A file's architecture, as JSON


def _clean_model(config, where) -> dict:
    """A model's JSON with nothing in it but layers and fields of the tables."""
    try:
        inner, kind, module = config["config"], config["class_name"], "keras"
        if kind not in MODELS:
            raise ValueError(
                f"{where} is a {kind}, a custom class; it must be a functional or sequential model of stock layers"
            )
        layers = [_clean_layer(layer, where) for layer in inner["layers"]]
        kept = {key: inner[key] for key in MODEL_FIELDS if key in inner}
        if not _is_plain(kept):
            raise KeyError("name")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where} is damaged: its architecture lacks {error}; save the model again") from None
    if kind != "Sequential":
        kind, module = "Functional", "keras.src.models.functional"
    return {"module": module, "class_name": kind, "config": kept | {"layers": layers}}


def _clean_layer(entry, where) -> dict:
    kind, module, config = entry["class_name"], entry.get("module") or "keras", entry["config"]
    name = config.get("name", entry.get("name"))
    if kind in MODELS:
        cleaned = _clean_model(entry, f"the model {name!r} in {where}")
    elif kind in OPERATIONS and module.startswith("keras.src.ops."):
        cleaned = {"module": module, "class_name": kind, "config": {"name": name}, "registered_name": kind}
    elif (kind in FIELDS or kind in LEFT_OUT) and module.partition(".")[0] == "keras":
        fields = fields_of(kind, config, name) if kind in FIELDS else {}
        if kind in LEFT_OUT:  # whatever it did in training
            kind = "Identity"
        cleaned = {"module": "keras.layers", "class_name": kind, "config": fields | {"name": name}}
    else:
        raise unknown_layer(name, kind, module)
    nodes = entry.get("inbound_nodes", [])
    if not _is_plain(nodes, tensors=True):
        raise ValueError(
            f"the layer {name!r} of {where} is called with more than tensors and numbers; build the model without"
        )
    return cleaned | {"name": name, "inbound_nodes": nodes}


def _is_plain(value, tensors=False) -> bool:
    """Whether there is nothing in a JSON value that Keras would make an object of, but for references to tensors."""
    if isinstance(value, dict):
        is_tensor = tensors and value.get("class_name") == "__keras_tensor__"
        return ("class_name" not in value or is_tensor) and all(_is_plain(v, tensors) for v in value.values())
    return all(_is_plain(v, tensors) for v in value) if isinstance(value, (list, tuple)) else True


def fields_of(kind, config, name) -> dict:
    """The fields of a layer that count; any other that says something is refused."""
    if config.get("data_format") == "channels_first":
        raise ValueError(f"the layer {name!r} is channels_first; build the model with channels_last")
    fields = {}
    for key, value in config.items():
        if key in FIELDS[kind]:
            if not _is_plain(value) or callable(value):
                raise ValueError(
                    f"the layer {name!r} has {key} {named(value)}, which cannot be rebuilt; use a stock one"
                )
            fields[key] = value
        elif value and (key, value) != ("groups", 1) and key not in UNUSED and not key.endswith(OF_TRAINING):
            raise ValueError(
                f"the layer {name!r}, a {kind}, has {key} {value!r}, which cannot be rebuilt; leave it out"
            )
    return fields


def named(value) -> str:
    """Give what a field names, a function or a class, for messages."""
    if isinstance(value, dict):
        value = value["config"] if isinstance(value.get("config"), str) else value.get("class_name")
    return f"{str(value)[:80]!r}"
