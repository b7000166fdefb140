"""What is known of a published model."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from ..recipe import Recipe
from ..spec import ModelSpec, ResNet8, spec_from_json

if TYPE_CHECKING:
    import pandas

__all__ = ["Card", "Cards", "PublishedFile", "check_name", "find", "index_from_json", "index_to_json"]


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
        from ..console import text_table

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


FORMAT = 1
MEASURED = ("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite")
ROLES = ("weights", "tflite", "saved_model", "history")


def index_to_json(cards: Cards) -> str:
    """The text of index.json."""
    models = []
    for card in cards:
        fields = {field.name: getattr(card, field.name) for field in dataclasses.fields(card)}
        fields["spec"] = json.loads(card.spec.to_json())
        fields["files"] = [dataclasses.asdict(file) for file in card.files]
        models.append(fields)
    return json.dumps({"format": FORMAT, "models": models}, indent=1) + "\n"


def index_from_json(text: str, source: str) -> Cards:
    """The cards of an index.json.

    Args:
        text: its content.
        source: where it is from, for messages.

    Raises:
        ValueError: it is no index, of a newer format, or an entry has a field missing, of another type, out of range,
            or a path outside the zoo's folder. Nothing in it is ever executed.
    """
    try:
        index = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON ({error}); restore it or install the package again") from None
    if not isinstance(index, dict) or not isinstance(index.get("models"), list):
        raise ValueError(f"{source} is no index: it needs an object with format and models")
    if index.get("format") != FORMAT or isinstance(index["format"], bool):
        raise ValueError(
            f"{source} has format {index.get('format')!r}; this version reads {FORMAT}: update factorizenet_tf"
        )
    cards = []
    for number, entry in enumerate(index["models"]):
        try:
            cards.append(_card(entry))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            name = entry.get("name", number) if isinstance(entry, dict) else number
            reason = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{source}: the entry {name!r} is damaged: {reason}") from None
    names = [card.reference for card in cards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{source} has {', '.join(twice)} more than once; keep one")
    return Cards(cards)


_KINDS = {
    "str": "name precision dataset dataset_name command training_machine published licence",
    "str?": "latency_machine",
    "int": "version macs params size_bytes",
    "int?": "ram_bytes",
    "number": "training_seconds",
    "number?": "latency_ms latency_ratio latency_2_threads_ms latency_2_threads_ratio input_scale",
    "share": "validation_accuracy accuracy",
    "dict": "images accuracies recipe versions",
    "dict?": "agreement",
    "strings": "class_names operators",
}


def _card(entry) -> Card:
    if not isinstance(entry, dict):
        raise TypeError(f"it is {entry!r}, not an object")
    fields = {name: _checked(name, entry[name], kind) for kind, names in _KINDS.items() for name in names.split()}
    check_name(fields["name"])
    if fields["version"] < 1:
        raise ValueError(f"version is {fields['version']}; it must be at least 1")
    if fields["precision"] not in ("float", "int8"):
        raise ValueError(f"precision is {fields['precision']!r}; it must be float or int8")
    is_int8 = fields["precision"] == "int8"
    for split in ("validation", "test"):
        for measured in MEASURED:
            _checked(
                f"accuracies of {split}", _checked("accuracies", fields["accuracies"][split], "dict")[measured], "share"
            )
        _checked(f"images of {split}", fields["images"][split], "int")
    if is_int8:
        agreement = _checked("agreement", fields["agreement"], "dict")
        for name, kind in (("top1", "share"), ("within_1_lsb", "share"), ("largest_lsb", "int"), ("images", "int")):
            _checked(f"agreement's {name}", agreement[name], kind)
        _checked("ram_bytes", fields["ram_bytes"], "int")
        _checked("input_scale", fields["input_scale"], "number")
    for package, number in fields["versions"].items():
        _checked(f"version of {package}", number, "str")
    fields["recipe"] = dataclasses.asdict(Recipe(**fields["recipe"]))
    zero_point = entry["input_zero_point"]
    if zero_point is not None and (isinstance(zero_point, bool) or not isinstance(zero_point, int)):
        raise TypeError(f"input_zero_point is {zero_point!r}; it must be an int")
    spec = spec_from_json(json.dumps(_checked("spec", entry["spec"], "dict")))
    if len(fields["class_names"]) != spec.num_classes:
        raise ValueError(f"it has {len(fields['class_names'])} class names, its spec {spec.num_classes} classes")
    files = tuple(_file(file) for file in _checked("files", entry["files"], "list"))
    missing = {"weights", "history", *(["tflite"] if is_int8 else [])} - {file.role for file in files}
    if missing:
        raise ValueError(f"it has no file of the role {', '.join(sorted(missing))}")
    return Card(**fields, input_zero_point=zero_point, spec=spec, files=files)


def check_name(name: str) -> None:
    """Raises ValueError where a model could not have this name."""
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name):
        raise ValueError(f"the name {name!r} must be of a-z, 0-9, single dots and hyphens")


def _file(entry) -> PublishedFile:
    _checked("a file", entry, "dict")
    file = PublishedFile(
        role=_checked("role", entry["role"], "str"),
        path=_checked("path", entry["path"], "str"),
        sha256=_checked("sha256", entry["sha256"], "str"),
        size_bytes=_checked("size_bytes", entry["size_bytes"], "int"),
    )
    if file.role not in ROLES:
        raise ValueError(f"a file has the role {file.role!r}; it must be one of {', '.join(ROLES)}")
    parts = PurePosixPath(file.path).parts
    plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", part) for part in parts)
    if not parts or not plain or "/".join(parts) != file.path:
        raise ValueError(f"the file {file.path!r} is not below the zoo's folder")
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise ValueError(f"the file {file.path} has the hash {file.sha256!r}; a SHA-256 has 64 hexadecimal digits")
    return file


def _checked(name, value, kind):
    if kind.endswith("?"):
        return None if value is None else _checked(name, value, kind[:-1])
    if kind == "strings":
        _checked(name, value, "list")
        return tuple(_checked(name, item, "str") for item in value)
    types = {"str": str, "int": int, "number": (int, float), "share": (int, float), "dict": dict, "list": list}[kind]
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{name} is {value!r:.80}; it must be of type {kind}")
    if kind in ("int", "number", "share"):
        most = 1 if kind == "share" else math.inf
        if not math.isfinite(value) or not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r:.80}; it must be from 0{' to 1' if kind == 'share' else ''}")
    return value


def _no_constant(text):
    raise ValueError(f"{text} is no JSON number")
