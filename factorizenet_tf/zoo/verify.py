"""A published number measured again."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

from ..data import Dataset
from ..models.evaluate import accuracy, agreement
from ..tflite.int8_model import Int8Model
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
        found: what is, or why it could not be looked at.
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
        """A dict a check."""
        words = {True: "ok", False: "FAILED", None: "skipped"}
        return [{"model": self.name} | dataclasses.asdict(c) | {"passed": words[c.passed]} for c in self.checks]

    def __repr__(self) -> str:
        from ..console import text_table

        return text_table([{k: str(v) for k, v in row.items()} for row in self.rows()])


def verify_card(card: Card, load_file, build_model, dataset: Dataset | None, reason: str = "") -> Verification:
    """Check a card against its files.

    Args:
        card: of the model.
        load_file: gives the path of one of its files, or raises.
        build_model: gives its Keras model.
        dataset: to measure accuracy on, or None.
        reason: why there is none.
    """
    checks = []
    for file in card.files:
        try:
            load_file(file)
            checks.append(
                Check(f"{file.path} hash and size", True, f"{file.sha256[:12]}, {file.size_bytes:,}", "equal")
            )
        except (OSError, ValueError) as error:
            checks.append(
                Check(f"{file.path} hash and size", False, f"{file.sha256[:12]}, {file.size_bytes:,}", str(error))
            )
    if not all(check.passed for check in checks):
        return Verification(card.name, tuple(checks))
    model = build_model()
    from ..cost import count_macs, count_params

    checks.append(_equal("MACs", card.macs, count_macs(model)))
    checks.append(_equal("parameters", card.params, count_params(model)))
    main = card.file("tflite" if card.precision == "int8" else "weights")
    checks.append(_equal("size in bytes", card.size_bytes, main.size_bytes))
    measured, precision = model, "float"
    if card.precision == "int8":
        measured, precision = Int8Model(load_file(main), threads=_threads()), "tflite"
        checks.append(_equal("operators", card.operators, tuple(sorted(set(measured.operators)))))
        scale, zero_point = measured.input_quantization
        checks.append(
            Check(
                "input scale and zero point",
                math.isclose(scale, card.input_scale, rel_tol=1e-6) and zero_point == card.input_zero_point,
                (card.input_scale, card.input_zero_point),
                (scale, zero_point),
            )
        )
        checks.append(_ram(card, load_file(main)))
    if dataset is None:
        checks.append(Check("accuracy", None, card.accuracy, reason))
        return Verification(card.name, tuple(checks))
    if card.precision == "int8":
        found = agreement(model, measured, dataset.test.images[: card.agreement["images"]])
        stated = card.agreement["top1"]
        checks.append(Check("agreement with Keras", found.top1 >= stated - AGREEMENT_BAND, stated, found.top1))
    for split in ("test", "validation"):
        stated, found = card.accuracies[split][precision], accuracy(measured, getattr(dataset, split))
        what = f"{split} accuracy, {len(getattr(dataset, split)):,} images"
        checks.append(Check(what, abs(found - stated) <= ACCURACY_BAND, stated, found))
    return Verification(card.name, tuple(checks))


def _equal(what, stated, found) -> Check:
    return Check(what, stated == found, stated, found)


def _ram(card, path) -> Check:
    from ..tflite.micro import arena_bytes

    try:
        return _equal("TFLite Micro arena, bytes", card.ram_bytes, arena_bytes(path.read_bytes()))
    except ModuleNotFoundError as error:
        return Check("TFLite Micro arena, bytes", None, card.ram_bytes, str(error))


def _threads() -> int:
    return os.cpu_count() or 1
