"""The int8 nets that `serve` and `predict` ask, by LiteRT alone: neither needs TensorFlow."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import zoo
from ..loading import check_name, int8_content, model_name, source_labels
from ..tflite.int8_model import Int8Model

__all__ = ["Classifier", "load_classifier", "load_classifiers"]


@dataclass(frozen=True, eq=False)
class Classifier:
    """An int8 net with its name and its class names by number; several threads may ask it."""

    name: str
    model: Int8Model
    labels: tuple[str, ...]
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)  # an interpreter holds one batch

    def classify(self, images: np.ndarray) -> dict[str, np.ndarray | list[str]]:
        """Classify images uint8 (n, height, width, channels).

        Returns:
            "logits" and "probabilities" float32 (n, classes), "class_id" int64 (n,), and "class_name", a list.
        """
        with self._lock:
            logits = self.model.predict(images)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        class_ids = logits.argmax(axis=1)
        return {
            "logits": logits,
            "probabilities": exponentials / exponentials.sum(axis=1, keepdims=True),
            "class_id": class_ids,
            "class_name": [self.labels[number] for number in class_ids],
        }


def load_classifier(
    source: str | os.PathLike, *, name: str | None = None, threads: int = 1, zoo_dir: str | os.PathLike | None = None
) -> Classifier:
    """Load the int8 net of a name of the zoo, a run's folder, a .tflite or a qat.h5; `name` in the place of its own.

    Raises:
        FileNotFoundError: there is nothing at the source.
        ValueError: it is damaged or a float net, or its name cannot be a part of an address.
    """
    if zoo_dir is not None and not Path(source).exists():
        content, labels = zoo.load(str(source), "path", zoo_dir=zoo_dir).read_bytes(), None
    else:
        content, labels = int8_content(source), source_labels(source)
    model = Int8Model(content, threads=threads)
    labels = model.labels or labels or tuple(map(str, range(model.num_classes)))
    return Classifier(check_name(name or model_name(source)), model, labels)


def load_classifiers(
    sources: Sequence[str | os.PathLike], *, threads: int = 1, zoo_dir: str | os.PathLike | None = None
) -> dict[str, Classifier]:
    """Load the int8 nets of several sources, by name; `name=source` gives one another name.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier`; or there is no source, or two nets have one name.
    """
    if not sources:
        raise ValueError("nothing to serve; give a name of `factorizenet list` or a run's folder")
    classifiers = {}
    for source in map(str, sources):
        name, equals, rest = source.partition("=")
        is_named = equals and len(Path(name).parts) == 1 and not Path(source).exists()  # runs/lr=0.1 is a path
        called, source = (name, rest) if is_named else (None, source)
        classifier = load_classifier(source, name=called, threads=threads, zoo_dir=zoo_dir)
        if classifier.name in classifiers:
            raise ValueError(f"two models are called {classifier.name!r}; name one otherwise: other={source}")
        classifiers[classifier.name] = classifier
    return classifiers
