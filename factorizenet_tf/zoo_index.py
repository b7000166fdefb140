"""The index of a zoo: what it lists, as JSON in which every field is checked and nothing is executed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import PurePosixPath

from .cards import Card, Cards, PublishedFile
from .recipe import Recipe
from .spec import spec_from_json

__all__ = ["check_name", "index_from_json", "index_to_json"]

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
