"""Look up published models by name: list, choose, load.

Everywhere, `zoo_dir` is a folder that `publish` wrote, or the http(s) address of one, and names are looked up there alone.
None stands for the models that come with the package, and those of a second zoo that the environment variable
FACTORIZENET_ZOO names. A name that both have, with different content, is refused until `zoo_dir` says which is meant. If the
second zoo cannot be read, a warning says so, and the package's own models work all the same. A name stands for its newest
version; "fnet-l2-int8@1" pins one, and no version is overwritten. Only `load(format="keras")` imports TensorFlow.
"""

import builtins
import dataclasses
import math
import os
import warnings
from collections.abc import Iterable

from ..requirement import Requirement, meets
from ..requirement import best as best_row
from .cards import Card, Cards, near
from .store import FolderStore, UrlStore, bundled_zoo, open_store, unzip

__all__ = ["best", "card", "find", "list", "load", "load_card", "names", "none_within"]

ZOO_VARIABLE = "FACTORIZENET_ZOO"
FORMATS = ("keras", "tflite", "saved_model", "path")
RANKED_BY = "validation_accuracy"
UNITS = {"macs": "MACs", "size_bytes": "bytes", "ram_bytes": "bytes of RAM", "latency_ms": "ms"}
LEAST = {"macs": "smallest", "size_bytes": "smallest", "ram_bytes": "one of least RAM", "latency_ms": "fastest"}


def names(*, zoo_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """Give the names that `load` takes. Errors as for `list`."""
    return tuple(dict.fromkeys(card.name for card in _cards(zoo_dir)))


def list(
    *,
    precision: str | None = None,
    dataset: str | None = None,
    all_versions: bool = False,
    zoo_dir: str | os.PathLike | None = None,
    **limits: float | None,
) -> Cards:
    """List the published models within the limits, as a tuple of cards that prints as a table.

    A model whose card has no number for a limit (RAM and latency of a float model) is left out. `card.zoo` tells the zoo
    that a card is from.

    Args:
        precision: "float" or "int8".
        dataset: as on the card, "CIFAR-10 (JPEG)", or as `load_dataset` takes it, "cifar10".
        all_versions: not only the newest of each name.
        limits: fields of `Requirement`: max_macs, max_size_bytes, max_ram_bytes, max_latency_ms (on the card's machine),
            min_accuracy (on validation).

    Raises:
        FileNotFoundError: there is no zoo in `zoo_dir`.
        ConnectionError: it cannot be fetched.
        ValueError: the precision is another, a limit is not above 0, no model is of this data set, latencies of several
            machines would be compared, or the index is damaged or of a newer format.
        TypeError: a limit is no number, or of no known name.
    """
    requirement = _requirement(limits)
    if precision not in (None, "float", "int8"):
        raise ValueError(f"precision is {precision!r}; it must be float or int8")
    cards = _cards(zoo_dir)
    datasets = sorted({card.dataset_name for card in cards})
    if dataset is not None and cards and dataset not in {*datasets, *(card.dataset for card in cards)}:
        raise ValueError(f"the zoo has no model of the data set {dataset!r}; {near(dataset, datasets)}")
    asked = [
        card
        for card in (cards if all_versions else cards.newest())
        if precision in (None, card.precision) and dataset in (None, card.dataset, card.dataset_name)
    ]
    _check_machines(asked, requirement)
    return Cards(card for card in asked if meets(card, requirement, accuracy=RANKED_BY))


def card(name: str, *, zoo_dir: str | os.PathLike | None = None) -> Card:
    """Find a model's card. Errors as for `find`."""
    return find(name, zoo_dir)[0]


def find(name: str, zoo_dir: str | os.PathLike | None = None) -> tuple[Card, FolderStore | UrlStore]:
    """Find the card of a name and the store that has its files; each zoo's index is read once.

    Raises:
        ValueError: there is no such name (near ones are offered), or two zoos have it with different content.
        FileNotFoundError, ConnectionError: as for `list`.
    """
    zoos = _zoos(zoo_dir)
    base = str(name).partition("@")[0]
    holders = [(store, cards) for store, cards in zoos if any(card.name == base for card in cards)]
    if not holders:
        try:
            Cards(card for _, cards in zoos for card in cards).find(name)
        except ValueError as error:
            where = f" (in {zoo_dir})" if zoo_dir is not None else _where_else()
            raise ValueError(f"{error}{where}") from None
    if len(holders) > 1 and len({_content(cards, name) for _, cards in holders}) > 1:
        first, second = (store.location for store, _ in holders)
        what = f"two zoos have a model {base!r}, and not the same: {first} and {second} ({ZOO_VARIABLE})"
        raise ValueError(f"{what}; say which is meant by zoo_dir=, or publish yours under another name")
    store, cards = holders[0]
    return cards.find(name), store


def best(
    *,
    precision: str = "int8",
    dataset: str | None = None,
    zoo_dir: str | os.PathLike | None = None,
    **limits: float | None,
) -> Card:
    """Choose the model with the highest validation accuracy within the limits; of equal ones that with fewer MACs.

    With min_accuracy, choose the model with the fewest MACs that reaches it. Test accuracy is never ranked by. Arguments as
    for `list`.

    Raises:
        ValueError: no model fits (the one nearest to the limits is named), or models of several data sets do and `dataset` is
            not given; else as `list`.
    """
    requirement = _requirement(limits)
    candidates = list(precision=precision, dataset=dataset, zoo_dir=zoo_dir)
    _check_machines(candidates, requirement)
    if not candidates:
        of = f" of {dataset!r}" if dataset else ""
        raise ValueError(f"the zoo has no {precision} model{of}; `factorizenet list` shows what it has")
    within = [card for card in candidates if meets(card, requirement, accuracy=RANKED_BY)]
    if not within:
        raise ValueError(none_within(candidates, **limits))
    datasets = sorted({card.dataset for card in within})
    if len(datasets) > 1:
        raise ValueError(f"accuracies on {', '.join(datasets)} do not compare; choose one by dataset=")
    return best_row(within, requirement, accuracy=RANKED_BY)


def none_within(cards: Iterable[Card], **limits: float | None) -> str:
    """Say which limits no card keeps, and which card is nearest to them: "...; the fastest is fnet-l6-int8: ..."."""
    limits, floor = _requirement(limits).limits, limits.get("min_accuracy")
    least = {cost: min(getattr(card, cost) or math.inf for card in cards) for cost in limits}  # infinite: not known
    unknown = " and ".join(cost for cost in limits if least[cost] == math.inf)
    if unknown:
        return f"no model has {unknown} on its card, as float models do not; ask for precision int8"
    over = [cost for cost in limits if limits[cost] < least[cost]]
    cost = (over or ["macs"])[0]
    word, nearest = LEAST[cost], min(cards, key=lambda card: (getattr(card, cost) or math.inf, card.size_bytes))
    limits_text = ", ".join(f"{limit:,} {UNITS[cost]}" for cost, limit in limits.items())
    given = [f"within {limits_text}"] * bool(limits)
    if floor is not None:
        given.append(f"from {floor:.2%} validation accuracy on")
        if not over:
            word, nearest = "most accurate", max(cards, key=lambda card: card.validation_accuracy)
    costs = [f"{getattr(nearest, cost):,} {unit}" for cost, unit in UNITS.items() if getattr(nearest, cost) is not None]
    costs.append(f"{nearest.validation_accuracy:.2%} validation accuracy")
    return f"no model {', '.join(given)}; the {word} is {nearest.name}: {', '.join(costs)}"


def load(name: str, format: str = "keras", *, threads: int = 1, zoo_dir: str | os.PathLike | None = None):
    """Load a published model after checking its files' hashes.

    Args:
        name: from `names()`.
        format: "keras": a tf_keras model, float images (batch, height, width, channels) in 0..1 in, logits out; for an -int8
            name the quantization-aware (fake-quantized) model, from which the true int8 one was converted. "tflite": that, as
            an `Int8Model` on LiteRT (-int8 names only). "saved_model": the path of a folder with the "keras" model, signature
            `image` -> `logits`. "path": the path of the .tflite (-int8) or the weights file (-float).
        threads: of the Int8Model.

    Raises:
        ValueError: no such name or format, a name in two zoos, a damaged file (expected and found hash), weights that
            do not fit the spec.
        FileNotFoundError: a file is missing.
        ConnectionError: it cannot be fetched.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(FORMATS)}")
    return load_card(find(name, zoo_dir)[0], format, threads=threads)


def load_card(card: Card, format: str, *, threads: int = 1):
    """Load the model of a card. Arguments and errors as for `load`."""
    store = open_store(card.zoo)
    if format == "tflite" or (format == "path" and card.precision == "int8"):
        path = store.path(_file(card, "tflite"))
        if format == "path":
            return path
        from ..tflite.int8_model import Int8Model

        return Int8Model(path, threads=threads)
    if format == "saved_model":
        file = _file(card, "saved_model")
        return unzip(store.path(file), file.sha256)
    path = store.path(_file(card, "weights"))
    if format == "path":
        return path
    from ..models.weights import load_model

    return load_model(path, spec=card.spec, precision=card.precision)


def _zoos(zoo_dir) -> builtins.list[tuple[FolderStore | UrlStore, Cards]]:
    """Open each zoo that names are looked up in, and read its index."""
    store = open_store(bundled_zoo() if zoo_dir is None else zoo_dir)
    zoos = [(store, store.cards())]
    second = os.environ.get(ZOO_VARIABLE)
    if zoo_dir is None and second:
        try:
            store = open_store(second, quick=True)
            zoos.append((store, store.cards()))
        except (OSError, ValueError) as error:  # another zoo's trouble: the package's own models are there
            text = f"{ZOO_VARIABLE} is left out: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
    return zoos


def _cards(zoo_dir) -> Cards:
    """List the cards of all zoos; a model that two zoos have, its files the same, is listed once."""
    seen = {}
    for _, cards in _zoos(zoo_dir):
        for card in cards:
            seen.setdefault((card.reference, card.files), card)
    return Cards(seen.values())


def _content(cards, name):
    """Give the files of a name as one zoo has it, None where it has the name but not the version."""
    try:
        return frozenset(file.sha256 for file in cards.find(name).files)
    except ValueError:
        return None


def _where_else():
    second = os.environ.get(ZOO_VARIABLE)
    state = f"names {second}" if second else "is not set"
    return f" (a zoo of your own is looked into by zoo_dir=, or by {ZOO_VARIABLE}, which {state})"


def _check_machines(cards, requirement) -> None:
    machines = sorted({card.latency_machine for card in cards if card.latency_machine})
    if len(machines) > 1 and requirement and requirement.max_latency_ms is not None:
        remedy = "give zoo_dir= of one zoo, or measure a zoo anew, here, by `factorizenet publish --latencies --zoo`"
        raise ValueError(f"latencies on {' and on '.join(machines)} do not compare; limit max_macs=, {remedy}")


def _requirement(limits):
    """Make a requirement of the given limits; None without any."""
    known = [field.name for field in dataclasses.fields(Requirement)]
    if unknown := sorted(limits.keys() - set(known)):
        raise TypeError(f"unknown arguments {', '.join(unknown)}; limits are {', '.join(known)}")
    return Requirement(**limits) if any(limit is not None for limit in limits.values()) else None


def _file(card, role):
    file = card.file(role)
    if file is None:
        has = ", ".join(sorted({file.role for file in card.files}))
        remedy = f"; load {card.name.removesuffix('-float')}-int8" if role == "tflite" else ""
        raise ValueError(f"{card.name} has no {role} (it has {has}){remedy}")
    return file
