"""What is served of a source: its Keras model, its int8 .tflite, its labels."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import zoo
from .export import int8_content, int8_file, model_name

__all__ = ["ServedNet", "check_name", "served_net"]

PRECISIONS = ("int8", "float")
RUN_FILES = ("float.h5", "qat.h5", "model.tflite")


@dataclass(frozen=True, eq=False)
class ServedNet:
    """A net as it is put on a server.

    Args:
        name: what clients call it.
        precision: "int8" or "float".
        model: tf_keras model, images in 0..1 in, logits out; fake-quantized where the precision is "int8".
        tflite: the true int8 model's bytes; None for float.
        labels: class names by number.
    """

    name: str
    precision: str
    model: object
    tflite: bytes | None
    labels: tuple[str, ...]


def served_net(
    source: str | os.PathLike, *, name: str | None = None, precision: str | None = None, labels=None
) -> ServedNet:
    """Load a source for serving.

    Args:
        source: a name of the zoo, a run's folder, float.h5 or qat.h5, or a tf_keras model's file.
        name: for clients; None takes the zoo's, or the spec's with its precision.
        precision: of a run's folder, "int8" unless said; another source has its own.
        labels: class names; None takes the source's, or numbers where it has none.

    Raises:
        FileNotFoundError: there is nothing at the source.
        ValueError: it is damaged or a .tflite, a name that cannot be served, labels that do not agree with the classes,
            or a precision that the source has not.
    """
    from .own import load_any
    from .quantize import is_quantize_aware

    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision is {precision!r}; it must be int8 or float")
    path, called = Path(source), name or model_name(source)
    if zoo.is_published(source):
        model = zoo.load(str(source), "keras")
    else:
        if path.is_dir() and (path / "float.h5").is_file():
            precision = precision or "int8"
            path = path / ("qat.h5" if precision == "int8" else "float.h5")
            called = name or f"{called.removesuffix('-int8')}-{precision}"
        model = load_any(path)
    if not hasattr(model, "layers"):
        raise ValueError(f"{source} is a .tflite; a SavedModel is made from a run's folder or its .h5 files")
    own = "int8" if is_quantize_aware(model) else "float"
    if precision not in (None, own):
        raise ValueError(f"{source} is {own}; it cannot be served as {precision}")
    tflite = None
    if own == "int8":
        tflite = int8_content(_run_of(path) or source)
    classes = int(model.output_shape[-1])
    labels = tuple(labels or source_labels(source) or map(str, range(classes)))
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes; give one name a class")
    return ServedNet(check_name(called), own, model, tflite, labels)


def check_name(name: str) -> str:
    """A name where it can be a folder and a part of an address.

    Raises:
        ValueError: it has a slash, a space or another character that cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"the name {name!r} cannot be served; use letters, digits, dots, hyphens and underscores, e.g. fnet-l2-int8"
        )
    return name


def source_labels(source: str | os.PathLike) -> tuple[str, ...] | None:
    """The class names that come with a source; None where there are none."""
    from .int8 import Int8Model

    if zoo.is_published(source):
        return zoo.card(str(source)).class_names
    folder = _run_of(Path(source))
    try:
        if folder is not None:
            return tuple(json.loads((folder / "dataset.json").read_text())["class_names"])
    except (OSError, ValueError, KeyError):  # the .tflite has them, too
        pass
    file = int8_file(source)
    return Int8Model(file).labels if file.suffix == ".tflite" else None


def _run_of(path: Path) -> Path | None:
    """The run's folder that a path is, or is a file of; None where it is none."""
    if path.name in RUN_FILES and path.is_file():
        path = path.parent
    return path if (path / "spec.json").is_file() and (path / "model.tflite").is_file() else None
