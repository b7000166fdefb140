"""Check published models against their cards: files, costs and accuracies measured again."""

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..console import Progress
from ..cost import count_macs, count_params
from ..data import Dataset, load_dataset
from ..models.evaluate import agreement, split_logits, top5_accuracy
from ..tflite.micro import arena_bytes
from .catalog import find, load_card
from .catalog import list as list_cards
from .store import open_store

__all__ = ["Check", "Verification", "verify", "verify_all"]

ACCURACY_BAND = 0.002  # another processor rounds some ties otherwise
AGREEMENT_BAND = 0.005


@dataclass(frozen=True)
class Check:
    """The check of one property of a published model: what its card states, and what was found.

    `passed` is None if the property could not be checked; `found` is then the reason.
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
        """Whether no check failed; a skipped check has not failed."""
        return all(check.passed is not False for check in self.checks)

    def rows(self) -> list[dict]:
        """Give a dict for each check."""
        words = {True: "ok", False: "FAILED", None: "skipped"}
        return [{"model": self.name} | dataclasses.asdict(c) | {"passed": words[c.passed]} for c in self.checks]

    def __repr__(self) -> str:
        from ..console import text_table

        return text_table(self.rows())


def verify(
    name: str,
    *,
    dataset: Dataset | None = None,
    data_dir: str | os.PathLike | None = None,
    zoo_dir: str | os.PathLike | None = None,
) -> Verification:
    """Check a published model against its card.

    Checked are hash and size of its files, MACs and parameters, operators, input quantization, RAM, agreement of the .tflite
    with its Keras model, and accuracy on whole splits, within 0.2 points. Accuracy and agreement are skipped, with the
    reason, if the card's data are not on this machine; if a file is missing or damaged, nothing is run.

    Args:
        name: from `names()`.
        dataset: None loads the card's own.
        data_dir: where TFDS keeps its data.
        zoo_dir: as for `zoo.load`.

    Raises:
        ValueError: no such name, or a name in two zoos.
    """
    card, _ = find(name, zoo_dir)
    return _verify(card, *(_local_dataset(card, data_dir) if dataset is None else (dataset, "")))


def verify_all(
    names: Sequence[str] | None = None, *, precision=None, zoo_dir=None, data_dir=None, verbose=True
) -> list[Verification]:
    """Verify several names, or all models (of a precision); each data set is loaded once. Arguments and errors as `verify`."""
    if names is None:
        cards = list_cards(precision=precision, zoo_dir=zoo_dir)
    else:
        cards = [find(name, zoo_dir)[0] for name in names]
    datasets, results = {}, []
    with Progress(verbose) as progress:
        progress.bar("verifying", len(cards))
        for card in cards:
            key = card.dataset_name, card.spec.input_shape, str(card.reading)
            if key not in datasets:
                datasets[key] = _local_dataset(card, data_dir)
            results.append(_verify(card, *datasets[key]))
            skipped = [check.what for check in results[-1].checks if check.passed is None]
            notes = f", {', '.join(skipped)} not checked" if skipped else ""
            progress.say(f"{card.name}: {'passed' if results[-1].passed else 'FAILED'}{notes}")
            progress.step()
    return results


def _local_dataset(card, data_dir):
    """Load a card's data if they are on this machine; else give None and the reason."""
    try:
        shape = card.spec.input_shape
        return load_dataset(card.dataset_name, input_shape=shape, data_dir=data_dir, download=False, **card.reading), ""
    except (OSError, ValueError) as error:
        return None, str(error)


def _verify(card, dataset, reason) -> Verification:
    """Check a card on its data; `reason` says why there is none."""
    store = open_store(card.zoo)
    checks = [_file_check(file, store) for file in card.files]
    if all(check.passed for check in checks):
        model = load_card(card, "keras")
        checks += [_equal("MACs", card.macs, count_macs(model)), _equal("parameters", card.params, count_params(model))]
        main = card.file("tflite" if card.precision == "int8" else "weights")
        checks.append(_equal("size in bytes", card.size_bytes, main.size_bytes))
        measured = model
        if card.precision == "int8":
            measured = load_card(card, "tflite", threads=os.cpu_count() or 1)
            checks += _int8_checks(card, measured, store.path(main).read_bytes())
        if dataset is not None and dataset.title != card.dataset:
            dataset, reason = None, f"the data here is {dataset.title}, the number is of {card.dataset}"
        if dataset is None:
            stated = card.validation_accuracy if card.accuracy is None else card.accuracy
            checks.append(Check("accuracy", None, stated, reason))
        else:
            checks += _accuracy_checks(card, model, measured, dataset)
    return Verification(card.name, tuple(checks))


def _file_check(file, store) -> Check:
    what, stated = f"{file.path} hash and size", f"{file.sha256[:12]}, {file.size_bytes:,}"
    try:
        store.path(file)
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
        found = agreement(keras_model, measured, dataset.held_out[1].images[: card.agreement["images"]]).top1
        checks.append(Check("agreement with Keras", found >= stated - AGREEMENT_BAND, stated, found))
    for split in sorted({*card.accuracies} & {*dataset.splits}):
        images = dataset.splits[split]
        scores = split_logits(measured, images)
        shares = {"": float((scores.argmax(1) == images.labels).mean()), "top-5 ": top5_accuracy(scores, images.labels)}
        for (kind, found), of_card in zip(shares.items(), (card.accuracies, card.top5 or {})):
            if split in of_card:
                stated, what = of_card[split][precision], f"{split} {kind}accuracy, {len(images):,} images"
                checks.append(Check(what, abs(found - stated) <= ACCURACY_BAND, stated, found))
    return checks


def _equal(what, stated, found) -> Check:
    return Check(what, stated == found, stated, found)
