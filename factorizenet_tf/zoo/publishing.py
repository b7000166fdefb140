"""Publish a finished training as two models in a zoo folder: checks, measurements, files, index and pages."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..console import Progress
from ..data import is_folder
from ..files import atomic_folder, write_text
from ..machine import cpu_name
from ..runs import DATASET_FILE, FLOAT_FILE, HISTORY_FILE, IN_MEMORY, QAT_FILE, TFLITE_FILE, Run, load_run
from ..spec import Architecture, ResNet8
from ..tflite.int8_model import Int8Model
from ..tflite.latency import time_in_turns
from ..tflite.micro import arena_bytes, micro_outputs
from .cards import Card, Cards, PublishedFile, check_name, index_to_json
from .pages import PAGES, write_pages
from .store import INDEX_FILE, FolderStore

__all__ = ["PublishError", "measure_latencies", "publish", "publish_errors", "shown_sources", "training_command"]

MIN_AGREEMENT = 0.98  # of the .tflite with its QAT model: of classes or, since of many one step may decide, of logits
MAX_LOSS = 0.01  # of validation accuracy, from float to the .tflite
MAX_GAIN = 0.05  # the same the other way: QAT's few epochs may gain a little, not make up for a broken float net
LATENCY_ROUNDS, LATENCY_RUNS = 9, 100
FILES = {  # of a publication, by precision and role
    "float": {"weights": FLOAT_FILE, "saved_model": "float_saved_model.zip"},
    "int8": {"weights": QAT_FILE, "tflite": TFLITE_FILE, "saved_model": "int8_saved_model.zip"},
}
LOCK_SECONDS = 600  # for several publishers before this one


class PublishError(ValueError):
    """A run that must not be published; the message has every reason with its remedy."""


def publish_errors(run: Run) -> list[str]:
    """List why a run must not be published, each reason with its remedy; empty if it may be.

    Raises ModuleNotFoundError if tflite-micro is not installed.
    """
    metrics = run.metrics
    if "qat" not in metrics["accuracy"]["validation"]:
        return [f"the run in {run.folder} has no QAT phase; train it with 1 QAT epoch or more"]
    if not {"machine", "versions"} <= metrics.keys():
        return [f"the run in {run.folder} does not say its machine and versions; train it with this version"]
    errors = []
    agreement = metrics["agreement"]
    if max(agreement["top1"], agreement["within_1_lsb"]) < MIN_AGREEMENT:
        found = f"{100 * agreement['top1']:.1f} % of {agreement['images']:,} images"
        asked = f"at least {100 * MIN_AGREEMENT:g} % is asked for"
        remedy = "convert it again, or look for the layer with analyze"
        errors.append(f"its .tflite and its QAT Keras model agree on {found} ({asked}); {remedy}")
    validation, images = metrics["accuracy"]["validation"], metrics["images"]["validation"]
    loss = validation["float"] - validation["tflite"]
    max_loss, max_gain = (max(share, 3 / images) for share in (MAX_LOSS, MAX_GAIN))  # of a small split, three images
    lost = round(loss * images)  # in whole images: a difference of two fractions is a little off
    if lost > max_loss * images:
        found = f"{100 * loss:.2f} points below float on validation (at most {100 * max_loss:.2f} are allowed)"
        errors.append(f"int8 is {found}; train it with more QAT epochs")
    if -lost > max_gain * images:
        found = f"{-100 * loss:.2f} points below int8 on validation (at most {100 * max_gain:.2f} are allowed)"
        reason = "it was not trained to its end, or its BatchNorm statistics lag behind its weights"
        remedy = "train it again with this version, with more epochs or smaller batches"
        errors.append(f"float is {found}: {reason}; {remedy}")
    return errors + _errors_on_small_devices(run.int8_model())


def _errors_on_small_devices(model: Int8Model) -> list[str]:
    """List why small devices do not run a .tflite in int8: other types in it, or TensorFlow Lite Micro, which tries."""
    remedy = "use other layers there"
    if others := sorted(model.tensor_types - {"int8", "int32"}):
        return [f"its .tflite computes in {', '.join(others)}, too (inspect shows where); {remedy}"]
    try:
        micro_outputs(model.content, np.zeros((1, *model.input_shape), np.uint8))
    except ValueError as error:
        return [f"{error}; {remedy}"]
    return []


def training_command(run: Run, dataset: dict) -> str:
    """Write what trains a run again: the command that trained it, else Python; `dataset` is its dataset.json."""
    if "command" in run.metrics:
        return run.metrics["command"]
    initial, zoo = (run.metrics.get(key) for key in ("initial", "initial_zoo"))
    data, initial, zoo, notes = shown_sources(dataset["name"], initial, zoo)
    reading = "".join(f", {name}={value!r}" for name, value in dataset.get("reading", {}).items())
    images = "(images, labels)" if data == "arrays" else repr(data)
    start = {None: "", IN_MEMORY: ", initial=model"}.get(initial, f", initial={initial!r}")
    if zoo:
        start = f", initial=fnet.zoo.load({initial!r}, zoo_dir={zoo!r})"
    is_own = isinstance(run.spec, Architecture)
    spec = f"fnet.architecture_of(model, {run.spec.name!r})" if is_own else _as_python(run.spec)
    if teacher := run.metrics.get("teacher"):
        shown = "teacher" if teacher == IN_MEMORY else repr(shown_sources("digits", teacher, None)[1])
        start += f", teacher={shown}"
    start += f", freeze={run.metrics['freeze']!r}" if "freeze" in run.metrics else ""
    data = f"fnet.load_dataset({images}, input_shape={run.spec.input_shape}{reading})"
    how = f"out='runs/{run.spec.name}', recipe={_as_python(run.recipe)}{start}"
    return f"fnet.train({spec}, {data}, {how}){notes}"


def _as_python(value) -> str:
    """Write Python that makes a spec or a recipe again."""
    text = re.sub(r"(ModelSpec|Stage|Recipe)\(", r"fnet.\1(", repr(value))
    return text.replace("ResNet8(", "fnet.baselines.ResNet8(")


def shown_sources(data: str, initial: str | None, zoo: str | None) -> tuple[str, str | None, str | None, str]:
    """Give data, initial net and its zoo as a card's command shows them, and a comment that explains placeholders.

    Folders of this machine become placeholders.

    Args:
        data: as `load_dataset` takes it.
        initial, zoo: the net that the training started from, and the zoo that it is of, as in metrics.json.
    """
    notes = []

    def placeholder(path, what):
        shown = f"path/to/{Path(path).resolve().name}"
        notes.append(f"{shown}: {what}")
        return shown

    if data == "arrays":
        notes.append("images, labels: your arrays")
    elif is_folder(data):
        data = placeholder(data, "the folder of its images")
    if initial == IN_MEMORY:
        notes.append("model: the float net it starts from")
    elif initial and not re.fullmatch(r"[a-z0-9.-]+-float(@\d+)?", initial):
        initial = placeholder(initial, "the float net it starts from")
    if zoo and "://" not in zoo:
        zoo = placeholder(zoo, "the zoo that has it")
    return data, initial, zoo, f"  # {'; '.join(notes)}" if notes else ""


def publish(
    run: Run | str | os.PathLike,
    *,
    zoo_dir: str | os.PathLike,
    name: str | None = None,
    licence: str | None = None,
    verbose: bool = True,
) -> Cards:
    """Add a finished training to a zoo folder as two models, -float and -int8.

    Measures RAM (extra `micro`) and latency against ResNet-8's, copies weights, .tflite, SavedModels and history, and
    writes index and pages last, so that a failure or a kill leaves the zoo as it was. Several processes may publish into
    one folder. Under names that the zoo has already, these models become the next version.

    Args:
        run: a `Run` or its folder.
        zoo_dir: the folder; made if it does not exist.
        name: without the precision; None: the spec's, e.g. fnet-l2.
        licence: of the weights, an SPDX identifier such as CC-BY-4.0; None: the card states none.
        verbose: print progress on stderr.

    Returns:
        The two cards.

    Raises:
        FileExistsError: this run is published there under this name already.
        FileNotFoundError: the run is not finished.
        PublishError: a ValueError: the run does not pass (`publish_errors`), the name is taken by a net of other data, or the
            folder is no zoo and has files that a zoo's pages would replace.
        ValueError: the name has other characters than a-z, 0-9, dots and hyphens, or `zoo_dir` is an address.
        OSError: the folder cannot be written.
    """
    if "://" in str(zoo_dir):
        raise ValueError(f"zoo_dir is {zoo_dir}; publish into a folder, and serve that folder")
    zoo = Path(zoo_dir).expanduser()
    run = run if isinstance(run, Run) else load_run(run)
    name = run.spec.name if name is None else name
    check_name(name)
    if errors := publish_errors(run):
        raise PublishError(f"{run.spec.name} is not published: {'; '.join(errors)}")
    _check_is_zoo_or_free(zoo)
    _make_writable(zoo)
    dataset = json.loads((run.folder / DATASET_FILE).read_text())
    if is_folder(dataset["name"]):  # found again from any folder
        dataset["name"] = str(Path(dataset["name"]).expanduser().resolve())
    content = (run.folder / TFLITE_FILE).read_bytes()
    try:
        _check_new(_cards(zoo), name, content, run, dataset)
    except FileExistsError:
        with FileLock(zoo / ".lock", LOCK_SECONDS):
            write_pages(zoo, _cards(zoo))  # a publication killed behind its index left older ones
        raise
    with Progress(verbose) as progress:
        progress.say(f"{name}: measuring RAM and latency")
        measured = {"ram_bytes": arena_bytes(content)} | _latencies([content], run.spec)[0]
        progress.say(f"{name}: writing weights and SavedModels")
        contents = _contents(run, content)
        with FileLock(zoo / ".lock", LOCK_SECONDS):
            before = _cards(zoo)
            _check_new(before, name, content, run, dataset)
            folder = _write_files(zoo, name, contents)
            version = 1 + max((card.version for card in before if card.name == f"{name}-int8"), default=0)
            place = {"version": version, "licence": licence, "zoo": str(zoo)}
            new = _new_cards(run, name, dataset, folder, contents, measured, place)
            _write_index(zoo, Cards(sorted([*before, *new], key=_order)))
        progress.say(f"published as {' and '.join(card.reference for card in new)} in {zoo}")
    return Cards(new)


def measure_latencies(zoo: Path, *, verbose: bool = True) -> Cards:
    """Measure the latency of every int8 model of a zoo folder in one run, in turns with ResNet-8; give all cards.

    Raises:
        ValueError, FileNotFoundError: a file is damaged or missing.
        OSError: the folder cannot be written.
    """
    store = FolderStore(zoo)
    alike, new = {}, {}
    for card in store.cards():
        if card.precision == "int8":
            alike.setdefault((card.spec.input_shape, card.spec.num_classes), []).append(card)
    _make_writable(zoo)
    with Progress(verbose) as progress:
        for cards in alike.values():
            progress.say(f"measuring the latency of {len(cards)} models of {cards[0].spec.input_shape}")
            contents = [store.path(card.file("tflite")).read_bytes() for card in cards]
            for card, latency in zip(cards, _latencies(contents, cards[0].spec)):
                new[card.reference] = latency | {"older": {}}
    with FileLock(zoo / ".lock", LOCK_SECONDS):
        cards = Cards(dataclasses.replace(card, **new.get(card.reference, {})) for card in store.cards())
        _write_index(zoo, cards)
    return cards


def _latencies(contents, spec) -> list[dict]:
    """Measure a card's latency fields for each .tflite, in turns with ResNet-8's, one thread."""
    models = [Int8Model(content) for content in (_reference(spec.input_shape, spec.num_classes), *contents)]
    times = time_in_turns([model.inference() for model in models], rounds=LATENCY_ROUNDS, runs=LATENCY_RUNS)
    medians = zip(np.median(times, axis=0)[1:], np.median(times[:, 1:] / times[:, :1], axis=0))
    return [
        {"latency_ms": round(float(ms), 5), "latency_ratio": round(float(ratio), 3), "latency_machine": cpu_name()}
        for ms, ratio in medians
    ]


@functools.lru_cache(maxsize=8)
def _reference(input_shape, num_classes) -> bytes:
    """Convert a ResNet-8 of random weights, on which latency does not depend."""
    from ..models.build import build
    from ..models.convert import to_tflite

    images = np.random.default_rng(0).integers(0, 256, (32, *input_shape), np.uint8)
    return to_tflite(build(ResNet8(input_shape=input_shape, num_classes=num_classes)), calibration=images)


def _contents(run, tflite) -> dict[str, bytes]:
    from ..models.convert import write_saved_model

    contents = {name: (run.folder / name).read_bytes() for name in (FLOAT_FILE, QAT_FILE, HISTORY_FILE)}
    contents[TFLITE_FILE] = tflite
    for precision, model in (("float", run.float_model()), ("int8", run.qat_model())):
        with tempfile.TemporaryDirectory() as temporary:
            write_saved_model(model, Path(temporary) / "saved_model")
            contents[f"{precision}_saved_model.zip"] = _zipped(Path(temporary) / "saved_model")
    return contents


def _zipped(folder: Path) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # a fixed date
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())
    return archive.getvalue()


def _write_files(zoo, name, contents) -> str:
    """Write a publication's files in a folder that is named by their content; give its path in the zoo.

    It may be there from a publication that was killed before it wrote the index.
    """
    digest = hashlib.sha256(b"".join(contents[file] for file in sorted(contents)))
    folder = f"models/{name}-{digest.hexdigest()[:8]}"
    with contextlib.suppress(FileExistsError), atomic_folder(zoo / folder) as partial:
        for file, content in contents.items():
            (partial / file).write_bytes(content)
    return folder


def _new_cards(run, name, dataset, folder, contents, measured, place) -> list[Card]:
    """Make the cards of a run, float and int8; `measured` is RAM and latency, `place` version, licence and zoo."""
    metrics = run.metrics
    scale, zero_point = run.int8_model().input_quantization
    int8 = measured | {"agreement": metrics["agreement"], "operators": tuple(metrics["operators"])}
    int8 |= {"input_scale": float(scale), "input_zero_point": int(zero_point)}
    as_measured = {key: metrics[key] for key in ("images", "macs", "params", "training_seconds", "versions")}
    own = {"float": dict.fromkeys(int8) | {"operators": ()}, "int8": int8}
    cards = []
    for precision, main, scored in (("float", "weights", "float"), ("int8", "tflite", "tflite")):
        files = {}
        for role, file in (FILES[precision] | {"history": HISTORY_FILE}).items():
            digest, size = hashlib.sha256(contents[file]).hexdigest(), len(contents[file])
            files[role] = PublishedFile(role, f"{folder}/{file}", digest, size)
        card = Card(
            name=f"{name}-{precision}",
            spec=run.spec,
            precision=precision,
            dataset=dataset["title"],
            dataset_name=_from_home(dataset["name"]),
            class_names=tuple(dataset["class_names"]),
            reading=dataset.get("reading", {}),
            size_bytes=files[main].size_bytes,
            older={},
            validation_accuracy=metrics["accuracy"]["validation"][scored],
            accuracy=metrics["accuracy"].get("test", {}).get(scored),
            accuracies=metrics["accuracy"],
            top5=metrics.get("top5_accuracy"),
            recipe=run.recipe.to_dict(),
            command=training_command(run, dataset),
            training_machine=metrics["machine"],
            published=datetime.date.today().isoformat(),
            files=tuple(files.values()),
            confusion=tuple([*metrics["confusion"].values()][-1][precision]) if "confusion" in metrics else None,
            **as_measured,
            **own[precision],
            **place,
        )
        cards.append(card)
    return cards


def _from_home(name):
    """Write a folder below the home folder as ~/...: a card is for others, too."""
    path, home = Path(name), Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else name


def _order(card):
    """Sort the family by width and level, then baselines; float before int8."""
    levels = card.level if isinstance(card.level, tuple) else (card.level,)
    return card.level is None, card.width or 0, isinstance(card.level, tuple), levels, card.name, card.version


def _cards(zoo):
    return FolderStore(zoo).cards() if (zoo / INDEX_FILE).exists() else Cards()


def _check_new(cards, name, content, run, dataset):
    """Check that a name is free, or names nets of the same data, and that the run is not one of these."""
    digest = hashlib.sha256(content).hexdigest()
    given = (dataset["title"], run.spec.input_shape, tuple(dataset["class_names"]))
    for card in cards:
        if card.name != f"{name}-int8":
            continue
        if card.file("tflite").sha256 == digest:
            raise FileExistsError(
                f"this run is published already, as {card.reference}; publish another one, or under another name"
            )
        taken = (card.dataset, card.spec.input_shape, card.class_names)
        if taken != given:
            nets = (taken, given)
            there, here = (f"{title}, images {shape}, {len(classes)} classes" for title, shape, classes in nets)
            here += ", of other names" if there == here else ""
            what = f"the name {name} is taken by a net of other data ({card.reference}: {there}; this run: {here})"
            raise PublishError(f"{what}; publish it under another name: give name=")


def _write_index(zoo, cards):
    write_text(zoo / INDEX_FILE, index_to_json(cards))
    write_pages(zoo, cards)


def _check_is_zoo_or_free(zoo):
    others = [] if (zoo / INDEX_FILE).exists() else [name for name in PAGES if (zoo / name).exists()]
    if others:
        remedy = "publish into another folder, or restore its index.json"
        raise PublishError(f"{zoo} is no zoo and has {others[0]}, which a zoo's pages would replace; {remedy}")


def _make_writable(zoo):
    """Find out before minutes of work that the folder cannot be written."""
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=zoo):
        pass
