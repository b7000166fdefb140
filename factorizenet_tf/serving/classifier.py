"""Classify images by int8 nets on LiteRT, for `serve` and `predict`; TensorFlow is not needed."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..loading import check_served_name, named_source, resolve
from ..tflite.int8_model import Int8Model

__all__ = ["Classifier", "load_classifier", "load_classifiers"]


@dataclass(frozen=True, eq=False)
class Classifier:
    """An int8 net with its name and its class names by number; several threads may use it."""

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
    """Load an int8 net: a name of the zoo, a run's folder, a .tflite or a qat.h5.

    Args:
        source: what `loading.resolve` takes.
        name: that the net is served by; None: its own.
        threads: of one inference.
        zoo_dir: as for `zoo.load`.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: it is damaged or a float net, or its name cannot be part of an address.
    """
    net = resolve(source, zoo_dir=zoo_dir)
    name = check_served_name(net.name if name is None else name)
    model = net.int8_model(threads=threads)
    labels = net.labels or tuple(map(str, range(model.num_classes)))
    if len(labels) != model.num_classes:
        found = f"{len(labels)} labels for {model.num_classes} classes"
        raise ValueError(f"{net.given} has {found}; convert it again with one a class")
    return Classifier(name, model, labels)


def load_classifiers(
    sources: Sequence[str | os.PathLike], *, threads: int = 1, zoo_dir: str | os.PathLike | None = None
) -> dict[str, Classifier]:
    """Load the int8 nets of several sources, by name; "name=source" gives a net another name.

    Raises:
        FileNotFoundError, ValueError: as `load_classifier`; or there is no source, or two nets have one name.
    """
    if not sources:
        raise ValueError("nothing to serve; give a name of `factorizenet list` or a run's folder")
    classifiers = {}
    for called, source in map(named_source, map(str, sources)):
        classifier = load_classifier(source, name=called, threads=threads, zoo_dir=zoo_dir)
        if classifier.name in classifiers:
            raise ValueError(f"two models are called {classifier.name!r}; name one otherwise: other={source}")
        classifiers[classifier.name] = classifier
    return classifiers
