"""What is known of a published model."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .baselines import ResNet8
from .spec import ModelSpec

if TYPE_CHECKING:
    import pandas

__all__ = ["Card", "Cards", "PublishedFile", "find"]


@dataclass(frozen=True)
class PublishedFile:
    """A file of the zoo.

    Args:
        role: "weights" (.h5), "tflite", "saved_model" (.zip of the folder) or "history" (.csv, a line an epoch).
        path: below the zoo's folder, with forward slashes.
        sha256: of its content, in hexadecimal.
        size_bytes: its length.
    """

    role: str
    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Card:
    """A published model: what it is, costs and scores. Accuracies are 0..1.

    Args:
        name: what `zoo.load` takes for the newest version.
        version: from 1; a version is never overwritten, and `zoo.load(reference)` pins it.
        spec: the net.
        precision: "float" or "int8".
        dataset: what it was trained and measured on, named as it is.
        dataset_name: what `load_dataset` takes for it.
        class_names: by number.
        images: how many of each split.
        macs: of one image.
        params: as Keras counts them.
        size_bytes: of the .tflite, or of the float weights file.
        ram_bytes: the arena that TensorFlow Lite for Microcontrollers records in its x86-64 Python build (tflite-micro);
            None for float.
        latency_ms: of one image, LiteRT with XNNPACK, one thread, on `latency_machine`; None for float.
        latency_ratio: that over ResNet-8's int8 latency, measured in turns in the same run.
        latency_2_threads_ms, latency_2_threads_ratio: the same with two threads.
        latency_machine: where they were measured.
        validation_accuracy: what models are ranked by.
        accuracy: on the test split, for report only.
        accuracies: by split, then by "float", "ptq_per_tensor", "ptq_per_channel", "qat" and "tflite".
        agreement: of the .tflite with its QAT Keras model, the fields of `Agreement`; None for float.
        operators: of the .tflite; empty for float.
        input_scale, input_zero_point: of the .tflite's int8 input; None for float.
        recipe: the fields of `Recipe`.
        command: what trains it again.
        training_seconds: of all epochs, on `training_machine`.
        training_machine: where.
        versions: of the packages it was made with.
        published: date, YYYY-MM-DD.
        licence: of the weights, an SPDX identifier.
        files: what there is to load.
    """

    name: str
    version: int
    spec: ModelSpec | ResNet8
    precision: str
    dataset: str
    dataset_name: str
    class_names: tuple[str, ...]
    images: dict
    macs: int
    params: int
    size_bytes: int
    ram_bytes: int | None
    latency_ms: float | None
    latency_ratio: float | None
    latency_2_threads_ms: float | None
    latency_2_threads_ratio: float | None
    latency_machine: str | None
    validation_accuracy: float
    accuracy: float
    accuracies: dict
    agreement: dict | None
    operators: tuple[str, ...]
    input_scale: float | None
    input_zero_point: int | None
    recipe: dict
    command: str
    training_seconds: float
    training_machine: str
    versions: dict
    published: str
    licence: str
    files: tuple[PublishedFile, ...]

    @property
    def reference(self) -> str:
        """The name with its version: fnet-l2-int8@1."""
        return f"{self.name}@{self.version}"

    @property
    def level(self) -> int | tuple[int, ...] | None:
        """Level of depth factorization; None for a baseline."""
        return getattr(self.spec, "level", None)

    @property
    def width(self) -> int | None:
        """Channels of the stem; None for a baseline."""
        return getattr(self.spec, "width", None)

    def file(self, role: str) -> PublishedFile | None:
        """The file of a role, or None."""
        return next((file for file in self.files if file.role == role), None)

    def row(self) -> dict:
        """The numbers that tables show."""
        names = [
            "name",
            "version",
            "precision",
            "dataset",
            "macs",
            "params",
            "size_bytes",
            "ram_bytes",
            "latency_ms",
            "latency_ratio",
        ]
        row = {key: getattr(self, key) for key in (*names, "validation_accuracy", "accuracy")}
        level = ".".join(map(str, self.level)) if isinstance(self.level, tuple) else self.level
        return {"name": row.pop("name"), "version": row.pop("version"), "level": level, "width": self.width} | row

    def __repr__(self) -> str:
        return (
            f"<Card {self.name}: {self.accuracy:.2%} on {self.dataset}, {self.macs:,} MACs, {self.size_bytes:,} bytes>"
        )


class Cards(tuple):
    """A tuple of cards that prints as a table."""

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each card: the numbers of `Card.row`."""
        import pandas

        return pandas.DataFrame([card.row() for card in self])

    def newest(self) -> Cards:
        """Of each name the newest version, in the order of these."""
        last = {card.name: card.version for card in sorted(self, key=lambda card: card.version)}
        return Cards(card for card in self if last[card.name] == card.version)

    def __repr__(self) -> str:
        if not self:
            return "no models"
        from .tables import text_table

        return text_table([_printed(card.row()) for card in self])


def find(cards: Cards, name: str) -> Card:
    """The card of a name, the newest, or of a name and version, fnet-l2-int8@1.

    Raises:
        ValueError: there is none; near names, or the versions that there are, are offered.
    """
    base, _, pin = str(name).partition("@")
    versions = sorted((card for card in cards if card.name == base), key=lambda card: card.version)
    for card in reversed(versions):
        if name in (card.name, card.reference):
            return card
    if versions:
        have = ", ".join(card.reference for card in versions)
        raise ValueError(f"{base} has no version {pin!r}; there are {have}")
    names = [card.name for card in cards.newest()]
    if not names:
        raise ValueError(f"no model {name!r}: this zoo is empty; `factorizenet publish` adds a trained run")
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    offer = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {', '.join(names)}"
    raise ValueError(f"no model {name!r} in the zoo; {offer}")


def _printed(row):
    """A row with what a reader wants of each number."""
    formats = {
        "latency_ms": "{:.3f}",
        "latency_ratio": "{:.2f}",
        "validation_accuracy": "{:.2%}",
        "accuracy": "{:.2%}",
    }
    return {
        key: "" if value is None else formats[key].format(value) if key in formats else value
        for key, value in row.items()
    }
