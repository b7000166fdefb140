"""Add a model to TensorFlow Serving's models.config, a text proto, without changing anything that is in it.

Source: https://www.tensorflow.org/tfx/serving/serving_config and tensorflow_serving/config/model_server_config.proto.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..files import locked, write_bytes

__all__ = ["CONFIG_FILE", "MOUNT", "add_model", "check_config", "import_protos"]

CONFIG_FILE = "models.config"
MOUNT = "/models"  # where the server's container sees the folder, as in TensorFlow Serving's own documentation
LOCK_SECONDS = 30


def import_protos(name: str):
    """Import a module of tensorflow-serving-api, e.g. "apis.predict_pb2".

    Raises:
        ModuleNotFoundError: the package is not installed; the message says how to.
    """
    import importlib

    try:
        return importlib.import_module(f"tensorflow_serving.{name}")
    except ModuleNotFoundError as error:
        if "tensorflow_serving" not in str(error):
            raise
        raise ModuleNotFoundError(
            "the export for TensorFlow Serving needs tensorflow-serving-api: pip install 'factorizenet_tf[serve]'"
        ) from None


def check_config(folder: str | os.PathLike, name: str) -> None:
    """Check that a model can be added to `folder/models.config`, which need not be there.

    Raises:
        ModuleNotFoundError: as `import_protos`.
        ValueError: the file is no text proto of the server's, has fields that tensorflow-serving-api does not know, or
            configures something else than a list of models.
    """
    _with_model(Path(folder) / CONFIG_FILE, name)


def add_model(folder: str | os.PathLike, name: str) -> bool:
    """Add a model to `folder/models.config`, for the server to answer with its highest version.

    The file's own text, comments included, stays as it is: the entry is inserted before the brace that ends the list.
    A model that is in it already is left as it is, and so is the file.

    Args:
        folder: what the server sees as MOUNT; the model's versions lie in `folder/name`.
        name: of the model.

    Returns:
        Whether the file was written.

    Raises:
        ModuleNotFoundError, ValueError: as `check_config`.
        TimeoutError: another export held the folder's lock for 30 s.
        OSError: the file cannot be read or written; it is then what it was.
    """
    path = Path(os.path.realpath(Path(folder) / CONFIG_FILE))  # of a link the file, or it would become one
    try:
        with locked(Path(folder) / ".lock", LOCK_SECONDS):
            text = _with_model(path, name)
            if text is not None:
                write_bytes(path, text.encode())
    except TimeoutError:
        raise TimeoutError(f"another export has held {folder} for {LOCK_SECONDS} s; wait for its end") from None
    return text is not None


def _with_model(path, name):
    """Give the file's text with one more model; None where it has that model."""
    from google.protobuf import text_format

    message = import_protos("config.model_server_config_pb2").ModelServerConfig
    try:
        text = path.read_bytes().decode() if path.exists() else ""
        config = text_format.Parse(text, message())
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(
            f"{path} is no models.config that can be added to ({error}); it was left as it is: mend it, or export to "
            "another folder"
        ) from None
    if config.HasField("custom_model_config"):
        raise ValueError(
            f"{path} has a custom_model_config, beside which there is no list of models; it was left as it is: export to "
            "another folder"
        )
    models = config.model_config_list.config
    if any(model.name == name for model in models):
        return None
    added = models.add(name=name, base_path=f"{MOUNT}/{name}", model_platform="tensorflow")
    lines = [f"    {line}\n" for line in text_format.MessageToString(added).splitlines()]
    entry = "".join(["  config {\n", *lines, "  }\n"])
    for candidate in _insertions(text, entry):
        try:
            if text_format.Parse(candidate, message()) == config:
                return candidate
        except text_format.ParseError:  # that brace ends something else
            continue
    raise ValueError(f"{path} was left as it is; add this to its model_config_list:\n{entry}")


def _insertions(text, entry):
    """Insert an entry at each place where a list may end, the last such place first."""
    for place in range(len(text) - 1, -1, -1):
        if text[place] in "}>":
            yield _whole_lines(text[:place]) + entry + text[place:]
    yield f"{_whole_lines(text)}model_config_list {{\n{entry}}}\n"


def _whole_lines(text):
    return text if not text or text.endswith("\n") else f"{text}\n"
