"""Pretrained models by name: list, choose, load, measure again, publish.

`zoo_dir` is everywhere a folder that `publish` wrote or the http(s) address of one, and then names are looked up there
alone; None for the models that come with the package, then those of the zoo that the environment variable
FACTORIZENET_ZOO names. A name is that of its newest version; "fnet-l2-int8@1" pins one, and no version is overwritten.
TensorFlow is imported by `load(format="keras")`, `publish`, `verify`, and by the loading of a TFDS set.
"""

from __future__ import annotations

import builtins
import contextlib
import os
from pathlib import Path

from .cards import Card, Cards, PublishedFile, find
from .store import open_stores, unpacked

__all__ = [
    "Card",
    "Cards",
    "PublishedFile",
    "best",
    "card",
    "evaluate",
    "is_published",
    "list",
    "load",
    "names",
    "publish",
    "verify",
    "verify_all",
]

FORMATS = ("keras", "tflite", "saved_model", "path")


def names(*, zoo_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The names that `load` takes. Errors as for `list`."""
    return tuple(card.name for card in _cards(zoo_dir).newest())


def list(
    *,
    max_macs: int | None = None,
    max_size_bytes: int | None = None,
    max_ram_bytes: int | None = None,
    max_latency_ms: float | None = None,
    precision: str | None = None,
    dataset: str | None = None,
    all_versions: bool = False,
    zoo_dir: str | os.PathLike | None = None,
) -> Cards:
    """The published models within the limits, as a tuple of cards that prints as a table.

    A model whose card has no number for a limit (RAM and latency of a float one) is left out.

    Args:
        max_macs: of one image.
        max_size_bytes: of the file.
        max_ram_bytes: of the TFLite Micro arena.
        max_latency_ms: on the card's machine.
        precision: "float" or "int8".
        dataset: as on the card, "CIFAR-10 (JPEG)", or as `load_dataset` takes it, "cifar10".
        all_versions: not only the newest of each name.

    Raises:
        FileNotFoundError: there is no zoo there.
        ConnectionError: it cannot be fetched.
        ValueError: the precision is another, or the index is damaged or of a newer format.
    """
    if precision not in (None, "float", "int8"):
        raise ValueError(f"precision is {precision!r}; it must be float or int8")
    limits = {
        "macs": max_macs,
        "size_bytes": max_size_bytes,
        "ram_bytes": max_ram_bytes,
        "latency_ms": max_latency_ms,
    }
    limits = {field: limit for field, limit in limits.items() if limit is not None}

    def fits(card):
        values = ((getattr(card, field), limit) for field, limit in limits.items())
        return (
            all(value is not None and value <= limit for value, limit in values)
            and precision in (None, card.precision)
            and dataset in (None, card.dataset, card.dataset_name)
        )

    cards = _cards(zoo_dir)
    return Cards(card for card in (cards if all_versions else cards.newest()) if fits(card))


def card(name: str, *, zoo_dir: str | os.PathLike | None = None) -> Card:
    """What is known of a model.

    Raises:
        ValueError: there is no such name (near ones are offered); others as for `list`.
    """
    return _found(name, zoo_dir)[1]


def is_published(source: str | os.PathLike) -> bool:
    """Whether it is a name, with or without a version, that `load` knows by itself, and no file or folder."""
    return not Path(source).exists() and str(source).partition("@")[0] in names()


def best(
    *,
    max_macs: int | None = None,
    max_size_bytes: int | None = None,
    max_ram_bytes: int | None = None,
    max_latency_ms: float | None = None,
    precision: str = "int8",
    dataset: str | None = None,
    zoo_dir: str | os.PathLike | None = None,
) -> Card:
    """The model with the highest validation accuracy within the limits; fewer MACs where two are equal.

    Test accuracy is shown on the card and never ranked by. Arguments as for `list`.

    Raises:
        ValueError: none fits; the smallest that there is is named. Models of several data sets fit: say which.
    """
    limits = {
        "max_macs": max_macs,
        "max_size_bytes": max_size_bytes,
        "max_ram_bytes": max_ram_bytes,
        "max_latency_ms": max_latency_ms,
    }
    within = list(precision=precision, dataset=dataset, zoo_dir=zoo_dir, **limits)
    if not within:
        candidates = list(precision=precision, dataset=dataset, zoo_dir=zoo_dir)
        given = ", ".join(f"{key}={value}" for key, value in limits.items() if value is not None)
        if not candidates:
            raise ValueError(f"the zoo has no {precision} model" + (f" of {dataset!r}" if dataset else ""))
        least = min(candidates, key=lambda card: card.macs)
        raise ValueError(
            f"no {precision} model within {given}; the smallest is {least.name}: {least.macs:,} MACs, "
            f"{least.size_bytes:,} bytes, {least.ram_bytes} bytes of RAM, {least.latency_ms} ms"
        )
    datasets = sorted({card.dataset for card in within})
    if len(datasets) > 1:
        raise ValueError(f"accuracies of {', '.join(datasets)} do not compare; give dataset=")
    return max(within, key=lambda card: (card.validation_accuracy, -card.macs))


def load(name: str, format: str = "keras", *, threads: int = 1, zoo_dir: str | os.PathLike | None = None):
    """A published model, its files' hashes checked.

    Args:
        name: from `names()`.
        format: "keras": a tf_keras model, float images (batch, height, width, channels) in 0..1 in, logits out; of an
            -int8 name the quantization-aware (fake-quantized) one, whose true int8 self is "tflite". "tflite": an
            `Int8Model` on LiteRT (-int8 only). "saved_model": the path of a folder, signature `image` -> `logits`, as
            for "keras". "path": the path of the .tflite (-int8) or the weights file (-float).
        threads: of the Int8Model.

    Raises:
        ValueError: no such name or format, a damaged file (expected and found hash), weights that do not fit the spec.
        FileNotFoundError: a file is missing.
        ConnectionError: it cannot be fetched.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    store, found = _found(name, zoo_dir)
    return _load(store, found, format, threads)


def evaluate(
    name: str,
    *,
    split: str = "test",
    dataset=None,
    data_dir: str | os.PathLike | None = None,
    zoo_dir: str | os.PathLike | None = None,
) -> dict:
    """Measure a published accuracy again.

    Args:
        name: from `names()`.
        split: "test", "validation" or "train".
        dataset: a `Dataset`; None loads the card's own.
        data_dir: where TFDS keeps its data.

    Returns:
        name, dataset (its title), split, images, accuracy (0..1), and published: the card's number for that split and
        data, or None.

    Raises:
        ValueError, FileNotFoundError: as `load` and `load_dataset`.
    """
    from ..models.evaluate import accuracy

    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; it must be test, validation or train")
    found = card(name, zoo_dir=zoo_dir)
    data = dataset or _dataset(found, data_dir)
    model = load(name, "tflite" if found.precision == "int8" else "keras", threads=os.cpu_count() or 1, zoo_dir=zoo_dir)
    images = getattr(data, split)
    published = found.accuracies.get(split, {}).get("tflite" if found.precision == "int8" else "float")
    return {
        "name": name,
        "dataset": data.title,
        "split": split,
        "images": len(images),
        "accuracy": accuracy(model, images),
        "published": published if data.title == found.dataset else None,
    }


def verify(
    name: str, *, dataset=None, data_dir: str | os.PathLike | None = None, zoo_dir: str | os.PathLike | None = None
):
    """Check a published model against its card.

    Hash and size of its files, MACs and parameters counted again, operators, input quantization, RAM, agreement of the
    .tflite with its Keras model, and accuracy on whole splits, within 0.2 points. Accuracy and agreement are skipped,
    saying so, where the card's data is not on this machine.

    Args:
        name: from `names()`.
        dataset: a `Dataset`, to check several names with one loading; None loads the card's own.

    Returns:
        A `Verification`: `passed`, `checks`; prints as a table.

    Raises:
        ValueError: no such name.
    """
    from .verify import verify_card

    store, found = _found(name, zoo_dir)
    reason = ""
    if dataset is None:
        try:
            dataset = _dataset(found, data_dir, download=False)
        except (OSError, ValueError) as error:
            reason = str(error)
    if dataset is not None and dataset.title != found.dataset:
        reason = f"the data here is {dataset.title}, the number is of {found.dataset}"
        dataset = None
    return verify_card(found, store.path, lambda: _load(store, found, "keras", 1), dataset, reason)


def verify_all(names, *, zoo_dir=None, data_dir=None, verbose=True) -> builtins.list:
    """`zoo.verify` of several names, each data set loaded once, with progress."""
    from ..console import Progress
    from ..data import load_dataset

    datasets, results = {}, []
    with Progress(verbose) as progress:
        bar = progress.bar("verifying", len(names))
        for name in names:
            entry = card(name, zoo_dir=zoo_dir)
            key = entry.dataset_name, entry.spec.input_shape
            if key not in datasets:
                with contextlib.suppress(OSError, ValueError):  # `verify` says why
                    datasets[key] = load_dataset(key[0], input_shape=key[1], data_dir=data_dir, download=False)
            results.append(verify(name, dataset=datasets.get(key), data_dir=data_dir, zoo_dir=zoo_dir))
            progress.say(f"{name}: {'passed' if results[-1].passed else 'FAILED'}")
            bar.advance()
    return results


def publish(run, *, zoo_dir: str | os.PathLike, name: str | None = None, verbose: bool = True) -> Cards:
    """Add a finished training to a zoo folder as two models, -float and -int8.

    Measures RAM (extra `micro`) and latency against ResNet-8's, copies weights, .tflite, SavedModels and history, and
    writes index and pages last, so that a failure or a kill leaves the zoo as it was. Several processes may publish into
    one folder. Where the names are there already, these become their next version.

    Args:
        run: a `Run` or its folder.
        zoo_dir: the folder; made where it is not there.
        name: without the precision; None: the spec's, as fnet-l2.
        verbose: say what is being done.

    Returns:
        The two cards.

    Raises:
        FileExistsError: this run is published there under this name.
        FileNotFoundError: the run is not finished.
        ValueError: the run does not pass a gate (`gates`): no QAT phase, int8 too far from Keras or from float, operators
            that a small device does not run; or the name could not be one.
        OSError: the folder cannot be written.
    """
    if str(zoo_dir).startswith(("http://", "https://")):
        raise ValueError(f"zoo_dir is {zoo_dir}; publish into a folder, and serve that")
    from .publish import publish_run

    return publish_run(run, Path(zoo_dir).expanduser(), name=name, verbose=verbose)


def _cards(zoo_dir):
    """Of all stores; a name that two have is the first one's."""
    cards = Cards()
    for store in open_stores(zoo_dir):
        taken = {card.name for card in cards}
        cards = Cards([*cards, *(card for card in store.cards() if card.name not in taken)])
    return cards


def _found(name, zoo_dir):
    """The store that has a name, and its card."""
    stores = open_stores(zoo_dir)
    base = str(name).partition("@")[0]
    for store in stores:
        cards = store.cards()
        if any(card.name == base for card in cards):
            return store, find(cards, name)
    return stores[0], find(_cards(zoo_dir), name)  # raises


def _load(store, found, format, threads):
    if format == "tflite" or (format == "path" and found.precision == "int8"):
        path = store.path(_file(found, "tflite"))
        if format == "path":
            return path
        from ..tflite.int8_model import Int8Model

        return Int8Model(path, threads=threads)
    if format == "saved_model":
        file = _file(found, "saved_model")
        return unpacked(store.path(file), file.sha256)
    path = store.path(_file(found, "weights"))
    if format == "path":
        return path
    from ..models.build import build
    from ..models.weights import load_weights

    model = build(found.spec)
    if found.precision == "int8":
        from ..models.quantize import quantize_aware

        model = quantize_aware(model)
    load_weights(model, path, spec=found.spec, precision=found.precision)
    return model


def _file(found, role):
    file = found.file(role)
    if file is None:
        has = ", ".join(sorted({file.role for file in found.files}))
        remedy = f"; load {found.name.removesuffix('-float')}-int8" if role == "tflite" else ""
        raise ValueError(f"{found.name} has no {role} (it has {has}){remedy}")
    return file


def _dataset(found, data_dir, download=True):
    from ..data import load_dataset

    return load_dataset(found.dataset_name, input_shape=found.spec.input_shape, data_dir=data_dir, download=download)


def __dir__() -> builtins.list[str]:
    return sorted(__all__)
