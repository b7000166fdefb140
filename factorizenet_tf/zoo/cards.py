"""Cards, what is known of published models, and index.json, the file that they are read from and written to."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..recipe import Recipe
from ..spec import ModelSpec, ResNet8, level_text, spec_from_json

__all__ = ["Card", "Cards", "PublishedFile", "check_name", "index_from_json", "index_to_json"]

FORMAT = 1
ACCURACIES = ("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite")
ROLES = ("weights", "tflite", "saved_model", "history")
# The fields of an entry by type; a type that ends in ? may be null.
TYPES = {
    "str": "name precision dataset dataset_name command training_machine published",
    "str?": "latency_machine licence",
    "int": "version macs params size_bytes",
    "int?": "ram_bytes",
    "signed?": "input_zero_point",
    "number": "training_seconds",
    "number?": "latency_ms latency_ratio input_scale",
    "share": "validation_accuracy accuracy",
    "dict": "images accuracies recipe versions",
    "dict?": "agreement",
    "strings": "class_names operators",
}
OLDER_FIELDS = ("latency_2_threads_ms", "latency_2_threads_ratio")  # of entries that an earlier version wrote
ROW_FIELDS = "precision dataset macs params size_bytes ram_bytes latency_ms latency_ratio validation_accuracy accuracy"
FORMATS = {"latency_ms": "{:.3f}", "latency_ratio": "{:.2f}", "validation_accuracy": "{:.2%}", "accuracy": "{:.2%}"}


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
        older: fields that an earlier version wrote (latency with two threads); kept as they were.
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
        licence: of the weights, an SPDX identifier; None where the publisher gave none.
        files: what there is to load.
        zoo: the folder or address of the zoo that the card was read from; no part of the index.
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
    older: dict
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
    licence: str | None
    files: tuple[PublishedFile, ...]
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
        """The file of a role, or None."""
        return next((file for file in self.files if file.role == role), None)

    def row(self) -> dict:
        """Give the numbers that tables show, and the zoo."""
        level = self.level_text if isinstance(self.level, tuple) else self.level
        start = {"name": self.name, "version": self.version, "level": level, "width": self.width}
        return start | {field: getattr(self, field) for field in ROW_FIELDS.split()} | {"zoo": self.zoo}

    def __repr__(self) -> str:
        return (
            f"<Card {self.name}: {self.accuracy:.2%} on {self.dataset}, {self.macs:,} MACs, {self.size_bytes:,} bytes>"
        )


class Cards(tuple):
    """A tuple of cards that prints as a table."""

    def newest(self) -> Cards:
        """Keep of each name in each zoo the newest version, in the order of these."""
        last = {(card.zoo, card.name): card.version for card in sorted(self, key=lambda card: card.version)}
        return Cards(card for card in self if last[card.zoo, card.name] == card.version)

    def find(self, name: str) -> Card:
        """Find the card of a name, the newest, or of a name and version, fnet-l2-int8@1.

        Raises:
            ValueError: there is none; near names, or the versions that there are, are offered.
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
        near = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
        offer = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {', '.join(names)}"
        raise ValueError(f"no model {name!r} in the zoo; {offer}")

    def __repr__(self) -> str:
        if not self:
            return "no models"
        from ..console import text_table

        hidden = {"zoo"} if len({card.zoo for card in self}) == 1 else set()
        rows = [{key: value for key, value in card.row().items() if key not in hidden} for card in self]
        return text_table([{key: _printed(key, value) for key, value in row.items()} for row in rows])


def _printed(key, value):
    """A cell with what a reader wants of its number."""
    return "" if value is None else FORMATS[key].format(value) if key in FORMATS else value


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
        models.append(fields)
    return json.dumps({"format": FORMAT, "models": models}, indent=1) + "\n"


def index_from_json(text: str, source: str, *, zoo: str = "", remedy: str = "restore it") -> Cards:
    """Read the cards of an index.json.

    Args:
        text: its content.
        source: where it is from, for messages.
        zoo: the folder or address, for the cards.
        remedy: what to do about a damaged one, for messages.

    Raises:
        ValueError: it is no index, of a newer format, or an entry has a field missing, of another type, out of range,
            or a path outside the zoo's folder. Nothing in it is ever executed.
    """
    try:
        index = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON ({error}); {remedy}") from None
    if not isinstance(index, dict) or not isinstance(index.get("models"), list):
        raise ValueError(f"{source} is no index: it needs an object with format and models; {remedy}")
    if index.get("format") != FORMAT or isinstance(index["format"], bool):
        raise ValueError(
            f"{source} has format {index.get('format')!r}; this version reads {FORMAT}: update factorizenet_tf"
        )
    cards = []
    for number, entry in enumerate(index["models"]):
        try:
            cards.append(_card(entry, zoo))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            name = entry.get("name", number) if isinstance(entry, dict) else number
            reason = f"the field {error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{source}: the entry {name!r} is damaged: {reason}; {remedy}") from None
    names = [card.reference for card in cards]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{source} has {', '.join(twice)} more than once; keep one")
    return Cards(cards)


def _card(entry, zoo) -> Card:
    if not isinstance(entry, dict):
        raise TypeError(f"it is {entry!r}, not an object")
    fields = {name: _checked(name, entry[name], kind) for kind, names in TYPES.items() for name in names.split()}
    check_name(fields["name"])
    if fields["version"] < 1:
        raise ValueError(f"version is {fields['version']}; it must be at least 1")
    if fields["precision"] not in ("float", "int8"):
        raise ValueError(f"precision is {fields['precision']!r}; it must be float or int8")
    is_int8 = fields["precision"] == "int8"
    for split in ("validation", "test"):
        values = _checked("accuracies", fields["accuracies"][split], "dict")
        for key in ACCURACIES:
            _checked(f"accuracies of {split}", values[key], "share")
        _checked(f"images of {split}", fields["images"][split], "int")
    if is_int8:
        agreement = _checked("agreement", fields["agreement"], "dict")
        for name, kind in (("top1", "share"), ("within_1_lsb", "share"), ("largest_lsb", "int"), ("images", "int")):
            _checked(f"agreement's {name}", agreement[name], kind)
        for name, kind in (("ram_bytes", "int"), ("input_scale", "number"), ("input_zero_point", "signed")):
            _checked(name, fields[name], kind)
    for package, number in fields["versions"].items():
        _checked(f"version of {package}", number, "str")
    fields["recipe"] = dataclasses.asdict(Recipe(**fields["recipe"]))
    spec = spec_from_json(json.dumps(_checked("spec", entry["spec"], "dict")))
    if len(fields["class_names"]) != spec.num_classes:
        raise ValueError(f"it has {len(fields['class_names'])} class names, its spec {spec.num_classes} classes")
    files = tuple(_file(file) for file in _checked("files", entry["files"], "list"))
    missing = {"weights", "history", *(["tflite"] if is_int8 else [])} - {file.role for file in files}
    if missing:
        raise ValueError(f"it has no file of the role {', '.join(sorted(missing))}")
    older = {name: _checked(name, entry[name], "number?") for name in OLDER_FIELDS if name in entry}
    return Card(**fields, older=older, spec=spec, files=files, zoo=zoo)


def check_name(name: str) -> None:
    """Raise ValueError where a model could not have this name."""
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
    types = {"str": str, "int": int, "signed": int, "dict": dict, "list": list}.get(kind, (int, float))
    if isinstance(value, bool) or not isinstance(value, types):
        raise TypeError(f"{name} is {value!r:.80}; it must be of type {'int' if kind == 'signed' else kind}")
    if kind in ("int", "number", "share"):
        most = 1 if kind == "share" else math.inf
        if not math.isfinite(value) or not 0 <= value <= most:
            raise ValueError(f"{name} is {value!r:.80}; it must be from 0{' to 1' if kind == 'share' else ''}")
    return value


def _no_constant(text):
    raise ValueError(f"{text} is no JSON number")
