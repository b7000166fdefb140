"""Check a published model against its card: files, costs and accuracies measured again."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

from ..cost import count_macs, count_params
from ..data import Dataset
from ..models.evaluate import accuracy, agreement
from ..tflite.int8_model import Int8Model
from ..tflite.micro import arena_bytes
from .cards import Card

__all__ = ["Check", "Verification", "verify_card"]

ACCURACY_BAND = 0.002  # another processor rounds some ties otherwise
AGREEMENT_BAND = 0.005


@dataclass(frozen=True)
class Check:
    """One property of a published model.

    Args:
        what: it is.
        passed: whether it holds; None where it could not be looked at.
        stated: what the card says.
        found: what was measured, or why nothing could be.
    """

    what: str
    passed: bool | None
    stated: object
    found: object


@dataclass(frozen=True)
class Verification:
    """All checks of one model."""

    name: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; what could not be looked at counts as not failed."""
        return all(check.passed is not False for check in self.checks)

    def rows(self) -> list[dict]:
        """Give a dict for each check."""
        words = {True: "ok", False: "FAILED", None: "skipped"}
        return [{"model": self.name} | dataclasses.asdict(c) | {"passed": words[c.passed]} for c in self.checks]

    def __repr__(self) -> str:
        from ..console import text_table

        return text_table([{k: str(v) for k, v in row.items()} for row in self.rows()])


def verify_card(card: Card, load_file, build_model, dataset: Dataset | None, reason: str = "") -> Verification:
    """Check a card against its files; where one is missing or damaged nothing is run.

    Args:
        card: of the model.
        load_file: gives the path of one of its files, or raises.
        build_model: gives its Keras model.
        dataset: to measure accuracy on, or None.
        reason: why there is none.
    """
    checks = [_file_check(file, load_file) for file in card.files]
    if all(check.passed for check in checks):
        model = build_model()
        checks += [_equal("MACs", card.macs, count_macs(model)), _equal("parameters", card.params, count_params(model))]
        main = card.file("tflite" if card.precision == "int8" else "weights")
        checks.append(_equal("size in bytes", card.size_bytes, main.size_bytes))
        measured = model
        if card.precision == "int8":
            path = load_file(main)
            measured = Int8Model(path, threads=os.cpu_count() or 1)
            checks += _int8_checks(card, measured, path.read_bytes())
        if dataset is None:
            checks.append(Check("accuracy", None, card.accuracy, reason))
        else:
            checks += _accuracy_checks(card, model, measured, dataset)
    return Verification(card.name, tuple(checks))


def _file_check(file, load_file) -> Check:
    what, stated = f"{file.path} hash and size", f"{file.sha256[:12]}, {file.size_bytes:,}"
    try:
        load_file(file)
    except (OSError, ValueError) as error:
        return Check(what, False, stated, str(error))
    return Check(what, True, stated, "equal")


def _int8_checks(card, model, content) -> list[Check]:
    scale, zero_point = model.input_quantization
    is_equal = math.isclose(scale, card.input_scale, rel_tol=1e-6) and zero_point == card.input_zero_point
    try:
        ram = _equal("TFLite Micro arena, bytes", card.ram_bytes, arena_bytes(content))
    except ModuleNotFoundError as error:
        ram = Check("TFLite Micro arena, bytes", None, card.ram_bytes, str(error))
    stated = (card.input_scale, card.input_zero_point)
    return [
        _equal("operators", card.operators, tuple(sorted(set(model.operators)))),
        Check("input scale and zero point", is_equal, stated, (scale, zero_point)),
        ram,
    ]


def _accuracy_checks(card, keras_model, measured, dataset) -> list[Check]:
    checks, precision = [], "float"
    if card.precision == "int8":
        precision, stated = "tflite", card.agreement["top1"]
        found = agreement(keras_model, measured, dataset.test.images[: card.agreement["images"]]).top1
        checks.append(Check("agreement with Keras", found >= stated - AGREEMENT_BAND, stated, found))
    for split in ("test", "validation"):
        images = getattr(dataset, split)
        stated, found = card.accuracies[split][precision], accuracy(measured, images)
        what = f"{split} accuracy, {len(images):,} images"
        checks.append(Check(what, abs(found - stated) <= ACCURACY_BAND, stated, found))
    return checks


def _equal(what, stated, found) -> Check:
    return Check(what, stated == found, stated, found)
