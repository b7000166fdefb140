"""Cards, which describe published models, and index.json, the file that holds them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal, NotRequired

from pydantic import AfterValidator, Field, PlainValidator, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes no other on Python 3.11

from ..classes import matrix_from_text
from ..recipe import recipe_from_json
from ..spec import Architecture, ModelSpec, ResNet8, level_text, spec_from_json

__all__ = ["Card", "Cards", "PublishedFile", "check_name", "index_from_json", "index_to_json", "near"]

FORMAT = 1
ACCURACIES = ("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite")
OLDER_FIELDS = ("latency_2_threads_ms", "latency_2_threads_ratio")  # of entries that an earlier version wrote
ROW_FIELDS = "precision dataset macs params size_bytes ram_bytes latency_ms latency_ratio validation_accuracy accuracy"
HEADS = {"size_bytes": "bytes", "ram_bytes": "ram", "validation_accuracy": "val_%", "accuracy": "test_%"}
BRIEF = ("name", "macs", "bytes", "ram", "latency_ratio", "val_%", "test_%")  # columns of a narrow terminal
FORMATS = {"latency_ms": "{:.3f}", "latency_ratio": "{:.2f}", "validation_accuracy": "{:.2%}", "accuracy": "{:.2%}"}


def check_name(name: str) -> str:
    """Return the name if a model can have it; raise ValueError otherwise."""
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", name):
        raise ValueError(f"the name {name!r} must be of a-z, 0-9, single dots and hyphens, e.g. my-net-2")
    return name


def _below_the_folder(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", part) for part in parts)
    if not parts or not plain or "/".join(parts) != path:
        raise ValueError(f"the file {path!r} is not below the zoo's folder")
    return path


# What an entry's fields must be. pydantic checks them when an index is read.
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Images = TypedDict("Images", dict.fromkeys(("train", "validation"), Count) | {"test": NotRequired[Count]})
Scores = TypedDict("Scores", dict.fromkeys(ACCURACIES, Share))
Accuracies = TypedDict("Accuracies", {"validation": Scores} | {"test": NotRequired[Scores]})
Agreed = TypedDict(
    "Agreed", dict.fromkeys(("top1", "within_1_lsb"), Share) | dict.fromkeys(("largest_lsb", "images"), Count)
)
Confusion = Annotated[tuple[str, ...], AfterValidator(lambda rows: (matrix_from_text(rows), rows)[1])]
Spec = Annotated[ModelSpec | ResNet8 | Architecture, PlainValidator(lambda fields: spec_from_json(json.dumps(fields)))]
RecipeFields = Annotated[dict, AfterValidator(lambda fields: recipe_from_json(json.dumps(fields)).to_dict())]


@dataclass(frozen=True)
class PublishedFile:
    """A file of the zoo.

    Args:
        role: "weights" (.h5), "tflite", "saved_model" (.zip of the folder) or "history" (.csv, a line an epoch).
        path: below the zoo's folder, with forward slashes.
        sha256: of its content, in hexadecimal.
    """

    role: Literal["weights", "tflite", "saved_model", "history"]
    path: Annotated[str, AfterValidator(_below_the_folder)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: Count


@dataclass(frozen=True, kw_only=True)
class Card:
    """A published model: what it is, costs and scores. Accuracies are 0..1.

    RAM, latency, agreement and input quantization are None for float, and `operators` are none.

    Args:
        name: what `zoo.load` takes for the newest version.
        version: from 1; a version is never overwritten, and `zoo.load(reference)` pins it.
        dataset: title of the data that it was trained and measured on.
        dataset_name: as `load_dataset` takes it.
        params: as Keras counts them.
        size_bytes: of the .tflite, or of the float weights file.
        ram_bytes: the arena that TensorFlow Lite for Microcontrollers records in its x86-64 Python build (tflite-micro),
            with its reference kernels.
        latency_ms: of one image, LiteRT with XNNPACK, one thread, on `latency_machine`.
        latency_ratio: that over ResNet-8's int8 latency, measured in turns in the same run.
        older: fields that an earlier version wrote (latency with two threads); kept as they were.
        validation_accuracy: int8 or float; models are ranked by it.
        accuracy: on the test split, only reported; None if the data have none.
        accuracies: by split, then by precision.
        top5: top-5 accuracies in the same form; None with 20 classes or fewer, and on older cards.
        confusion: matrix of the test images (of the validation images if the data have no test split), as
            `classes.matrix_to_text` writes it; None on older cards.
        agreement: of the .tflite with its QAT Keras model, the fields of `Agreement`.
        command: that trains it again, or Python that does.
        training_seconds: of all epochs.
        versions: of the packages it was made with.
        published: date, YYYY-MM-DD.
        licence: of the weights, an SPDX identifier; None where the publisher gave none.
        files: what there is to load.
        reading: options of `load_dataset` for these data, `Dataset.reading`; the index omits it if it is empty.
        zoo: the folder or address of the zoo that the card was read from; no part of the index.
    """

    name: Annotated[str, AfterValidator(check_name)]
    version: Annotated[int, Field(ge=1)]
    spec: Spec
    precision: Literal["float", "int8"]
    dataset: str
    dataset_name: str
    class_names: tuple[str, ...]
    images: Images
    macs: Count
    params: Count
    size_bytes: Count
    ram_bytes: Count | None
    latency_ms: Number | None
    latency_ratio: Number | None
    older: dict[str, Number | None]
    latency_machine: str | None
    validation_accuracy: Share
    accuracy: Share | None
    accuracies: Accuracies
    agreement: Agreed | None
    operators: tuple[str, ...]
    input_scale: Number | None
    input_zero_point: int | None
    recipe: RecipeFields
    command: str
    training_seconds: Number
    training_machine: str
    versions: dict[str, str]
    published: str
    licence: str | None
    files: tuple[PublishedFile, ...]
    top5: Accuracies | None = None
    confusion: Confusion | None = None
    reading: dict[str, str | bool] = dataclasses.field(default_factory=dict)
    zoo: str = dataclasses.field(default="", compare=False)

    @property
    def reference(self) -> str:
        """The name with its version: fnet-l2-int8@1."""
        return f"{self.name}@{self.version}"

    @property
    def level(self) -> int | tuple[int, ...] | None:
        """Level of depth factorization; None for a baseline."""
        return getattr(self.spec, "level", None)

    @property
    def level_text(self) -> str:
        """The level as names have it, e.g. 2 or 1.2.4; empty for a baseline."""
        return "" if self.level is None else level_text(self.level)

    @property
    def width(self) -> int | None:
        """Channels of the stem; None for a baseline."""
        return getattr(self.spec, "width", None)

    def file(self, role: str) -> PublishedFile | None:
        """Find the file of a role; None if there is none."""
        return next((file for file in self.files if file.role == role), None)

    def row(self) -> dict:
        """Give the numbers that tables show, and the zoo."""
        level = self.level_text if isinstance(self.level, tuple) else self.level
        start = {"name": self.name, "version": self.version, "level": level, "width": self.width}
        return start | {field: getattr(self, field) for field in ROW_FIELDS.split()} | {"zoo": self.zoo}

    def __repr__(self) -> str:
        is_tested = self.accuracy is not None
        score = f"{self.accuracy if is_tested else self.validation_accuracy:.2%} on {self.dataset}"
        where = "" if is_tested else " (validation)"
        return f"<Card {self.name}: {score}{where}, {self.macs:,} MACs, {self.size_bytes:,} bytes>"


def near(name: str, names: list[str]) -> str:
    """Suggest names for an unknown one: "did you mean 'fnet-l6-int8'?", or all names, or their number if there are many."""
    alike = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
    if not alike and len(names) > 10:
        return f"`factorizenet list` shows the {len(names)} that there are"
    return f"did you mean {', '.join(map(repr, alike))}?" if alike else f"there are {', '.join(names)}"


_READER = TypeAdapter(Card)


class Cards(tuple):
    """A tuple of cards that prints as a table."""

    def newest(self) -> Cards:
        """Keep the newest version of each name in each zoo, in the order of these cards."""
        last = {(card.zoo, card.name): card.version for card in sorted(self, key=lambda card: card.version)}
        return Cards(card for card in self if last[card.zoo, card.name] == card.version)

    def find(self, name: str) -> Card:
        """Find the newest card of a name, or the card of a name and version, fnet-l2-int8@1.

        Raises:
            ValueError: there is none; similar names or the existing versions are offered.
        """
        base, _, pin = str(name).partition("@")
        versions = sorted((card for card in self if card.name == base), key=lambda card: card.version)
        for card in reversed(versions):
            if name in (card.name, card.reference):
                return card
        if versions:
            have = ", ".join(card.reference for card in versions)
            raise ValueError(f"{base} has no version {pin!r}; there are {have}")
        names = list(dict.fromkeys(card.name for card in self))
        if not names:
            raise ValueError(f"no model {name!r}: this zoo is empty; `factorizenet publish` adds a trained run")
        raise ValueError(f"no model {name!r} in the zoo; {near(name, names)}")

    def __repr__(self) -> str:
        if not self:
            return "no models"
        from ..console import text_table

        hidden = {"zoo"} if len({card.zoo for card in self}) == 1 else set()
        rows = [{key: value for key, value in card.row().items() if key not in hidden} for card in self]
        for row in rows:
            row |= {key: form.format(row[key]).rstrip("%") for key, form in FORMATS.items() if row[key] is not None}
        return text_table([{HEADS.get(key, key): row[key] for key in row} for row in rows], brief=BRIEF)


def index_to_json(cards: Cards) -> str:
    """Write the text of index.json."""
    models = []
    for card in cards:
        fields = {}
        for field in dataclasses.fields(card):
            fields |= card.older if field.name == "older" else {field.name: getattr(card, field.name)}
        fields["spec"] = json.loads(card.spec.to_json())
        fields["files"] = [dataclasses.asdict(file) for file in card.files]
        del fields["zoo"]
        for name in ("top5", "confusion", "reading"):  # without them the index stays as it was
            if not fields[name]:
                del fields[name]
        models.append(fields)
    return json.dumps({"format": FORMAT, "models": models}, indent=1) + "\n"


def index_from_json(text: str, source: str, *, zoo: str = "", remedy: str = "restore it") -> Cards:
    """Read the cards of an index.json; `source` and `remedy` are for messages, `zoo`, folder or address, for the cards.

    Raises:
        ValueError: it is no index, of a newer format, or an entry lacks a field or has one of another type, out of range, or
            with a path outside the zoo's folder. Nothing in it is ever executed.
    """
    try:
        index = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON ({error}); {remedy}") from None
    if not isinstance(index, dict) or not isinstance(index.get("models"), list):
        raise ValueError(f"{source} is no index: it needs an object with format and models; {remedy}")
    if index.get("format") != FORMAT or isinstance(index["format"], bool):
        found = f"{source} has format {index.get('format')!r}"
        raise ValueError(f"{found}; this version reads {FORMAT}: update factorizenet_tf")
    cards = []
    for number, entry in enumerate(index["models"]):
        try:
            cards.append(_card(entry, zoo))
        except (TypeError, ValueError) as error:
            name = entry.get("name", number) if isinstance(entry, dict) else number
            raise ValueError(f"{source}: the entry {name!r} is damaged: {_reason(error)}; {remedy}") from None
    names = [card.reference for card in cards]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{source} has {', '.join(twice)} more than once; keep one")
    return Cards(cards)


def _card(entry, zoo) -> Card:
    if not isinstance(entry, dict):
        raise TypeError(f"it is {entry!r}, not an object")
    older = {name: entry[name] for name in OLDER_FIELDS if name in entry}
    card = _READER.validate_json(json.dumps(entry | {"older": older, "zoo": zoo}), strict=True)
    if len(card.class_names) != card.spec.num_classes:
        raise ValueError(f"it has {len(card.class_names)} class names, its spec {card.spec.num_classes} classes")
    if card.confusion is not None and len(card.confusion) != len(card.class_names):
        raise ValueError(f"its confusion matrix has {len(card.confusion)} rows, not one a class")
    required = {"weights", "history"}
    if card.precision == "int8":
        required.add("tflite")
        if None in (card.agreement, card.ram_bytes, card.input_scale, card.input_zero_point):
            raise ValueError("an int8 model needs agreement, ram_bytes, input_scale and input_zero_point")
    if missing := required - {file.role for file in card.files}:
        raise ValueError(f"it has no file of the role {', '.join(sorted(missing))}")
    return card


def _reason(error) -> str:
    """What is wrong with an entry: pydantic's first finding as a line."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    is_missing = first["type"] == "missing"
    reason = first["msg"].removeprefix("Value error, ")
    return f"the field {field} is missing" if is_missing else f"{field} is {first['input']!r:.80}: {reason}"


def _no_constant(text):
    raise ValueError(f"{text} is no JSON number")
