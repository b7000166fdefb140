"""Read a tf_keras model's file or SavedModel without running code in it.

tf_keras calls what an architecture names: a TFOpLambda calls any function of TensorFlow's, and an unknown class has its module
imported. So the architecture is read as JSON first, and must name stock classes alone. A SavedModel's graph, some of which runs as
it is loaded, is left alone: the model is built from the architecture, and the variables are read into it.
"""

import functools
import json
from pathlib import Path

from .._keras import keras, quiet_notices
from .architecture import unknown_layer
from .keras3_file import MODELS, held, is_archive, named

__all__ = ["load_tf_keras"]

# Stock layers that call what their fields name, or read files of that name.
UNSAFE = {"Lambda", "DenseFeatures", "IntegerLookup", "StringLookup", "TextVectorization"}
VALUES = {"Policy", "__numpy__", "__tensor__"}  # what else JSON has class names for
# Activations that tf_keras knows by name.
OTHER_ACTIVATIONS = {"leaky_relu", "log_softmax", "relu6", "silu"}
NO_ACTIVATIONS = {"deserialize", "get", "serialize"}


def load_tf_keras(path: Path) -> keras.Model:
    """Load a .keras or .h5 file that tf_keras wrote, or a SavedModel's folder of tf_keras's, not compiled.

    Raises:
        ValueError: it is damaged, holds weights alone, or names other than stock classes and activations; the layer is named.
    """
    try:
        entry = _architecture(path)
        kind, config = entry["class_name"], entry["config"]
        if kind in MODELS:
            _check_stock(config, None)
            return _loaded(path, kind, config, entry.get("build_config"))
    except _NotStockError as error:
        raise error.args[0] from None
    except Exception as error:  # each format raises its own
        reason = str(error).strip().partition("\n")[0][:200]
        reason = f"{path} is no model that tf_keras can load ({reason})"
        raise ValueError(f"{reason}; save it with tf_keras as .keras or .h5") from None
    raise ValueError(f"{path} is a {kind}, a custom class; it must be a functional or sequential model of stock layers")


class _NotStockError(Exception):
    """Has the error that says what is not stock."""


def _architecture(path) -> dict:
    """The model's entry as JSON has it, but for tuples, which become lists, and how models were compiled."""
    if path.is_dir():
        from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

        nodes = SavedMetadata.FromString((path / "keras_metadata.pb").read_bytes()).nodes
        text = next(node.metadata for node in nodes if node.node_path == "root")
    else:
        text = held(path, "config.json", "model_config")

    def plain(value):
        value.pop("compile_config", None)
        return value.get("items", value)

    return json.loads(text, object_hook=plain)


def _loaded(path, kind, config, build_config) -> keras.Model:
    from tf_keras.src.saving.legacy.hdf5_format import load_weights_from_hdf5_group
    from tf_keras.src.saving.serialization_lib import ObjectSharingScope

    with ObjectSharingScope():
        model = (keras.Sequential if kind == "Sequential" else keras.Model).from_config(config)
    if build_config and not model.built:
        model.build_from_config(build_config)
    if path.is_dir():
        with quiet_notices():  # of variables that are no weights
            status = model.load_weights(path / "variables" / "variables")
            status.assert_existing_objects_matched()
            status.expect_partial()
    elif is_archive(path):
        model.load_weights(path)
    else:
        import h5py

        with h5py.File(path, "r") as file:
            load_weights_from_hdf5_group(file["model_weights"], model)
    return model


@functools.cache
def _stock() -> tuple[set[str], set[str]]:
    """Names of classes, and of activations, that tf_keras has, that run no code but its own, and read no files."""
    modules = (keras.layers, keras.initializers, keras.regularizers, keras.constraints)
    classes = {name for module in modules for name, value in vars(module).items() if isinstance(value, type)}
    activations = {name for name, value in vars(keras.activations).items() if callable(value)}
    return classes - UNSAFE | {*MODELS} | VALUES, activations - NO_ACTIVATIONS | OTHER_ACTIVATIONS


def _check_stock(value, layer, field="layers") -> None:
    """Raise if a part of an architecture, in a field of a layer, names a class or an activation that is not stock."""
    if isinstance(value, list):
        for part in value:
            _check_stock(part, layer, field)
    elif isinstance(value, dict):
        config = value.get("config")
        own = config.get("name", layer) if isinstance(config, dict) else value.get("name", layer)
        if "class_name" in value and not _is_stock(value):
            if field in ("layers", "layer"):
                raise _NotStockError(unknown_layer(own, value["class_name"], str(value.get("module") or "")))
            raise _not_stock(layer, field, value)
        for key, part in value.items():
            if isinstance(part, str) and key.endswith("activation") and part not in _stock()[1]:
                raise _not_stock(own, key, part)
            _check_stock(part, own, field if key == "config" else key)


def _is_stock(value) -> bool:
    kind, module = value["class_name"], value.get("module") or "keras"
    is_own = str(module).partition(".")[0] in ("keras", "tf_keras") and value.get("registered_name") in (None, kind)
    return isinstance(kind, str) and kind in _stock()[0] and is_own


def _not_stock(layer, field, value) -> _NotStockError:
    text = f"the layer {layer!r} has {field} {named(value)}, which cannot be rebuilt; use a stock one"
    return _NotStockError(ValueError(text))
