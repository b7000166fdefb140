"""Manage the folder that TensorFlow Serving sees: a model's next version, and the models.config beside the models.

Source: https://www.tensorflow.org/tfx/serving/serving_config and tensorflow_serving/config/model_server_config.proto.
"""

import os
import warnings
from numbers import Integral
from pathlib import Path

from filelock import FileLock

from ..console import require_extra
from ..files import write_bytes
from ..loading import check_served_name

__all__ = ["CONFIG_FILE", "MOUNT", "add_model", "next_version"]

CONFIG_FILE = "models.config"
MOUNT = "/models"  # where the server's container sees the folder, as in TensorFlow Serving's own documentation
LOCK_SECONDS = 30


def next_version(folder: str | os.PathLike, name: str, version: int | None = None) -> Path:
    """Choose the folder of an export, `folder/name/version`, and check all that could stop it; nothing is written.

    Args:
        folder: that the server sees as MOUNT; it need not exist.
        name: of the model.
        version: above the newest one; None: the next.

    Raises:
        ValueError: the name cannot be served, the version is not above the newest, or models.config is no text proto of
            the server's, has fields that tensorflow-serving-api does not know, or configures no list of models.
        FileExistsError: `folder/name` holds something else.
        ModuleNotFoundError: tensorflow-serving-api is not installed (extra `serve`).
    """
    require_extra("tensorflow_serving", extra="serve", what="the export for TensorFlow Serving")
    if version is not None and (isinstance(version, bool) or not isinstance(version, Integral) or version < 1):
        raise ValueError(f"version is {version!r}; it must be an integer of at least 1")
    base = Path(folder) / check_served_name(name)
    entries = [path.name for path in base.iterdir()] if base.is_dir() else ["a file"] if base.exists() else []
    others = sorted(entry for entry in entries if not entry.isdecimal())
    if others:
        raise FileExistsError(f"{base} holds {', '.join(others)} and not only versions; choose another folder")
    newest = max(map(int, entries), default=0)
    if version is not None and version <= newest:
        raise ValueError(f"version {version} of {name} is not above the newest, {newest}; give at least {newest + 1}")
    _with_model(Path(folder) / CONFIG_FILE, name)
    return base / str(newest + 1 if version is None else version)


def add_model(folder: str | os.PathLike, name: str) -> bool:
    """Add a model to `folder/models.config`, so that the server answers with its highest version.

    The file's own text, comments included, stays as it is: the entry is inserted before the brace that ends the list. If the
    model is in the file already, the file is left as it is; a warning tells if that entry's base_path is elsewhere.

    Returns:
        Whether the file was written.

    Raises:
        ValueError: as `next_version`, of the file.
        TimeoutError: another export held the folder's lock for 30 s.
        OSError: the file cannot be read or written; it is then what it was.
    """
    path = Path(os.path.realpath(Path(folder) / CONFIG_FILE))  # of a link the file, or it would become one
    try:
        with FileLock(Path(folder) / ".lock", LOCK_SECONDS):
            text, base_path = _with_model(path, name)
            if text is not None:
                write_bytes(path, text.encode())
    except TimeoutError:
        raise TimeoutError(f"another export has held {folder} for {LOCK_SECONDS} s; wait for its end") from None
    versions = Path(folder) / name
    if base_path.rstrip("/") != f"{MOUNT}/{name}" and os.path.realpath(base_path) != os.path.realpath(versions):
        what = f"{path} has {name} at {base_path}, where a server does not find the versions in {versions}"
        remedy = f"edit the entry's base_path ({MOUNT}/{name} for a container that sees the folder as {MOUNT})"
        warnings.warn(f"{what}; {remedy}, or export under another name", RuntimeWarning, stacklevel=3)
    return text is not None


def _with_model(path, name):
    """Give the file's text with one more model, or None where it has that model, and the model's base_path."""
    from google.protobuf import text_format
    from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

    try:
        text = path.read_bytes().decode() if path.exists() else ""
        config = text_format.Parse(text, ModelServerConfig())
    except (UnicodeDecodeError, text_format.ParseError) as error:
        what = f"{path} is no models.config that can be added to ({error})"
        remedy = "mend it, or export to another folder"
        raise ValueError(f"{what}; it was left as it is: {remedy}") from None
    if config.HasField("custom_model_config"):
        what = f"{path} has a custom_model_config, beside which there is no list of models"
        raise ValueError(f"{what}; it was left as it is: export to another folder")
    for model in config.model_config_list.config:
        if model.name == name:
            return None, model.base_path
    added = config.model_config_list.config.add(name=name, base_path=f"{MOUNT}/{name}", model_platform="tensorflow")
    lines = [f"    {line}\n" for line in text_format.MessageToString(added).splitlines()]
    entry = "".join(["  config {\n", *lines, "  }\n"])
    for candidate in _insertions(text, entry):
        try:
            if text_format.Parse(candidate, ModelServerConfig()) == config:
                return candidate, added.base_path
        except text_format.ParseError:  # that brace ends something else
            continue
    raise ValueError(f"{path} was left as it is; add this to its model_config_list:\n{entry}")


def _insertions(text, entry):
    """Insert an entry at each place where a list may end, the last such place first; else in a list of its own."""
    for place in reversed([number for number, character in enumerate(text) if character in "}>"]):
        yield _whole_lines(text[:place]) + entry + text[place:]
    yield f"{_whole_lines(text)}model_config_list {{\n{entry}}}\n"


def _whole_lines(text):
    return text if not text or text.endswith("\n") else f"{text}\n"
