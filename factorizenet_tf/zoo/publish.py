"""From a finished training to two models of a zoo folder."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from ..console import Progress
from ..files import locked, write_csv, write_text
from ..machine import cpu_name
from ..recipe import recipe_for
from ..runs import IN_MEMORY, Run, load_run
from ..spec import DEFAULT_STAGES, ResNet8
from ..tflite.int8_model import Int8Model
from ..tflite.micro import arena_bytes
from .cards import Card, Cards, PublishedFile, check_name, index_to_json
from .pages import write_pages
from .store import INDEX_FILE, FolderStore

__all__ = ["measure_latencies", "publish_run", "refusals", "training_command"]

LEAST_AGREEMENT = 0.98  # top-1, of the .tflite with its QAT Keras model
LARGEST_LOSS = 0.01  # of validation accuracy, from float to the .tflite
# int8 kernels that LiteRT and TensorFlow Lite for Microcontrollers both have; none of them computes in float
OPERATORS = frozenset(
    (
        "ADD",
        "AVERAGE_POOL_2D",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "MAX_POOL_2D",
        "MEAN",
        "PAD",
        "RESHAPE",
    )
)


def refusals(run: Run) -> list[str]:
    """Why a run must not be published, a line for each reason; empty where it may be."""
    metrics = run.metrics
    if "qat" not in metrics["accuracy"]["test"]:
        return [f"the run in {run.folder} has no QAT phase; train it with qat_epochs of at least 1"]
    if not {"machine", "versions"} <= metrics.keys():
        return [f"the run in {run.folder} does not say its machine and versions; train it with this version"]
    reasons = []
    agreement = metrics["agreement"]
    if agreement["top1"] < LEAST_AGREEMENT:
        reasons.append(
            f"its .tflite and its QAT Keras model agree on {100 * agreement['top1']:.1f} % of {agreement['images']} "
            f"images (at least {100 * LEAST_AGREEMENT:g} % is asked for); convert it again, or look for the layer with analyze"
        )
    validation, images = metrics["accuracy"]["validation"], metrics["images"]["validation"]
    loss = validation["float"] - validation["tflite"]
    allowed = max(LARGEST_LOSS, 3 / images)  # of a small split, three images
    if loss > allowed:
        reasons.append(
            f"int8 is {100 * loss:.2f} points below float on validation (at most {100 * allowed:.2f} are allowed); "
            "train it with more qat_epochs"
        )
    strange = sorted(set(metrics["operators"]) - OPERATORS)
    if strange:
        reasons.append(f"its .tflite has the operators {', '.join(strange)}, which small devices do not run in int8")
    return reasons


def training_command(run: Run, dataset: dict) -> str:
    """What trains the run again: a command where its options say all, else Python."""
    spec, recipe = run.spec, run.recipe
    default = recipe_for(dataset["name"])
    changed = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != getattr(default, field.name)
    }
    options = ("epochs", "qat_epochs", "batch_size", "learning_rate", "seed")
    is_baseline = isinstance(spec, ResNet8)
    initial = run.metrics.get("initial")
    plain = set(changed) <= set(options) and initial != IN_MEMORY
    if not plain or dataset["name"] == "arrays":
        start = "model" if initial == IN_MEMORY else repr(initial)
        arguments = "".join(f", {name}={value!r}" for name, value in changed.items())
        return (
            f"fnet.train({_expression(spec)}, "
            f"fnet.load_dataset({dataset['name']!r}, input_shape={spec.input_shape}), "
            f"out='runs/{spec.name}', recipe=fnet.recipe_for({dataset['name']!r}{arguments})"
            f"{f', initial={start}' if initial else ''})"
        )
    parts = ["factorizenet train"]
    if initial:
        parts.append(f"--from {initial}")
    elif is_baseline:
        parts.append("--baseline resnet8")
    else:
        level = ".".join(map(str, spec.level)) if isinstance(spec.level, tuple) else spec.level
        parts.append(f"--level {level}")
        if spec.width != 16:
            parts.append(f"--width {spec.width}")
        if spec.stages != DEFAULT_STAGES:
            parts.append("--stages " + ",".join(f"{s.blocks}x{s.stride}" for s in spec.stages))
    parts.append(f"--dataset {dataset['name']}")
    height, width, channels = spec.input_shape
    if height == width and dataset["name"] == "digits" and spec.input_shape != (32, 32, 3):
        parts.append(f"--size {height} --channels {channels}")
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    return " ".join([*parts, f"--out runs/{spec.name}"])


def _expression(spec) -> str:
    """Python that builds the spec."""
    shared = f"input_shape={spec.input_shape}, num_classes={spec.num_classes}"
    if isinstance(spec, ResNet8):
        return f"fnet.baselines.ResNet8({shared})"
    stages = tuple(tuple(stage) for stage in spec.stages)
    return f"fnet.ModelSpec({spec.level}, width={spec.width}, {shared}, stages={stages})"


LICENCE = "Apache-2.0"
LATENCY_ROUNDS = 9
FILES = ("float.h5", "qat.h5", "model.tflite", "history.csv", "float_saved_model.zip", "int8_saved_model.zip")
LOCK_SECONDS = 600  # for several publishers before this one


def publish_run(run: Run | str | os.PathLike, zoo: Path, *, name: str | None, verbose: bool) -> Cards:
    """Add a run to a zoo folder; `zoo.publish` has the arguments."""
    run = run if isinstance(run, Run) else load_run(run)
    name = run.spec.name if name is None else name
    check_name(name)
    reasons = refusals(run)
    if reasons:
        raise ValueError(f"{run.spec.name} is not published: {'; '.join(reasons)}")
    _make_writable(zoo)
    content = (run.folder / "model.tflite").read_bytes()
    try:
        _check_new(_cards(zoo), name, content)
    except FileExistsError:
        with locked(zoo / ".lock", LOCK_SECONDS):
            write_pages(zoo, _cards(zoo))  # a publication killed behind its index left older ones
        raise
    with Progress(verbose) as progress:
        progress.say(f"{name}: measuring RAM and latency")
        measured = {"ram_bytes": arena_bytes(content)} | _latencies([content], run.spec)[0]
        progress.say(f"{name}: writing weights and SavedModels")
        with locked(zoo / ".lock", LOCK_SECONDS):
            before = _cards(zoo)
            _check_new(before, name, content)
            _remove_unlisted(zoo, before)
            files = _write_files(run, name, zoo, content)
            version = 1 + max((card.version for card in before if card.name == f"{name}-int8"), default=0)
            new = [_card(run, name, version, precision, files, measured) for precision in ("float", "int8")]
            _write_index(zoo, Cards(sorted([*before, *new], key=_order)))
        progress.say(f"published as {' and '.join(card.reference for card in new)} in {zoo}")
    return Cards(new)


def measure_latencies(zoo: Path, *, verbose: bool = True) -> Cards:
    """Measure the latency of every int8 model of a zoo folder in one run, in turns with ResNet-8; gives all cards.

    Raises:
        ValueError, FileNotFoundError: a file is damaged or missing.
        OSError: the folder cannot be written.
    """
    store = FolderStore(zoo)
    cards = store.cards()
    _make_writable(zoo)
    new = {}
    with Progress(verbose) as progress:
        groups = {}
        for card in cards:
            if card.precision == "int8":
                groups.setdefault((card.spec.input_shape, card.spec.num_classes), []).append(card)
        for alike in groups.values():
            progress.say(f"measuring the latency of {len(alike)} models of {alike[0].spec.input_shape}")
            contents = [store.path(card.file("tflite")).read_bytes() for card in alike]
            for card, latency in zip(alike, _latencies(contents, alike[0].spec)):
                new[card.reference] = latency
    with locked(zoo / ".lock", LOCK_SECONDS):
        cards = Cards(dataclasses.replace(card, **new.get(card.reference, {})) for card in store.cards())
        _write_index(zoo, cards)
    return cards


def _latencies(contents, spec) -> list[dict]:
    """Latency fields of a card for each .tflite, measured in turns with ResNet-8's at one and at two threads."""
    reference = _reference(spec.input_shape, spec.num_classes)
    results = [{"latency_machine": cpu_name()} for _ in contents]
    for threads, infix in ((1, ""), (2, "_2_threads")):
        rival = Int8Model(reference, threads=threads)
        models = [Int8Model(content, threads=threads) for content in contents]
        times = np.array(
            [
                [model.latency_ms(runs=100, warm_up=10).median_ms for model in (rival, *models)]
                for _ in range(LATENCY_ROUNDS)
            ]
        )
        ratios = np.median(times[:, 1:] / times[:, :1], axis=0)
        for result, ms, ratio in zip(results, np.median(times[:, 1:], axis=0), ratios):
            result[f"latency{infix}_ms"], result[f"latency{infix}_ratio"] = round(float(ms), 5), round(float(ratio), 3)
    return results


def _reference(input_shape, num_classes) -> bytes:
    """ResNet-8's .tflite with random weights, on which latency does not depend."""
    from ..models.build import build
    from ..models.convert import to_tflite
    from ..models.quantize import quantize_aware

    images = np.random.default_rng(0).integers(0, 256, (32, *input_shape), np.uint8)
    return to_tflite(
        quantize_aware(build(ResNet8(input_shape=input_shape, num_classes=num_classes)), calibration=images)
    )


def _write_files(run, name, zoo, content) -> dict:
    """The run's files in a folder of the zoo named by their content; gives precision -> PublishedFiles."""
    from ..models.convert import write_saved_model

    models = zoo / "models"
    models.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=models, prefix=".aside-"))
    try:
        for file in ("float.h5", "qat.h5"):
            shutil.copyfile(run.folder / file, aside / file)
        (aside / "model.tflite").write_bytes(content)
        write_csv(aside / "history.csv", run.history())
        for precision, model in (("float", run.float_model()), ("int8", run.qat_model())):
            with tempfile.TemporaryDirectory() as temporary:
                write_saved_model(model, Path(temporary) / "saved_model")
                (aside / f"{precision}_saved_model.zip").write_bytes(_zipped(Path(temporary) / "saved_model"))
        digest = hashlib.sha256()
        for file in sorted(aside.iterdir()):
            digest.update(file.read_bytes())
        folder = models / f"{name}-{digest.hexdigest()[:8]}"
        os.chmod(aside, 0o755)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

    def published(role, name):
        data = (folder / name).read_bytes()
        path = (folder / name).relative_to(zoo).as_posix()
        return PublishedFile(role, path, hashlib.sha256(data).hexdigest(), len(data))

    history = published("history", "history.csv")
    return {
        "float": (
            published("weights", "float.h5"),
            published("saved_model", "float_saved_model.zip"),
            history,
        ),
        "int8": (
            published("weights", "qat.h5"),
            published("tflite", "model.tflite"),
            published("saved_model", "int8_saved_model.zip"),
            history,
        ),
    }


def _zipped(folder: Path) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())  # a fixed date
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, path.read_bytes())
    return archive.getvalue()


def _card(run, name, version, precision, files, measured) -> Card:
    metrics, is_int8 = run.metrics, precision == "int8"
    dataset = json.loads((run.folder / "dataset.json").read_text())
    main = next(file for file in files[precision] if file.role == ("tflite" if is_int8 else "weights"))
    key = "tflite" if is_int8 else "float"
    scale, zero_point = run.int8_model().input_quantization
    unmeasured = dict.fromkeys(measured)
    return Card(
        name=f"{name}-{precision}",
        version=version,
        spec=run.spec,
        precision=precision,
        dataset=dataset["title"],
        dataset_name=dataset["name"],
        class_names=tuple(dataset["class_names"]),
        images=metrics["images"],
        macs=metrics["macs"],
        params=metrics["params"],
        size_bytes=main.size_bytes,
        **(measured if is_int8 else unmeasured),
        validation_accuracy=metrics["accuracy"]["validation"][key],
        accuracy=metrics["accuracy"]["test"][key],
        accuracies=metrics["accuracy"],
        agreement=metrics["agreement"] if is_int8 else None,
        operators=tuple(metrics["operators"]) if is_int8 else (),
        input_scale=float(scale) if is_int8 else None,
        input_zero_point=int(zero_point) if is_int8 else None,
        recipe=dataclasses.asdict(run.recipe),
        command=training_command(run, dataset),
        training_seconds=metrics["training_seconds"],
        training_machine=metrics["machine"],
        versions=metrics["versions"],
        published=datetime.date.today().isoformat(),
        licence=LICENCE,
        files=files[precision],
    )


def _order(card):
    """The family by width and level, then baselines; float before int8."""
    levels = card.level if isinstance(card.level, tuple) else (card.level,)
    return card.level is None, card.width or 0, isinstance(card.level, tuple), levels, card.name, card.version


def _cards(zoo):
    return FolderStore(zoo).cards() if (zoo / INDEX_FILE).exists() else Cards()


def _check_new(cards, name, content):
    digest = hashlib.sha256(content).hexdigest()
    for card in cards:
        if card.name == f"{name}-int8" and card.file("tflite").sha256 == digest:
            raise FileExistsError(f"this run is published already, as {card.reference}")


def _remove_unlisted(zoo, cards):
    """Remove what a publication left that was killed; nothing that is not a publication's own."""
    listed = {Path(file.path).parent.name for card in cards for file in card.files}
    for folder in (zoo / "models").glob("*"):
        if folder.name not in listed and _is_own(folder):
            shutil.rmtree(folder)


def _is_own(folder):
    """Whether `_write_files` made it: one set aside, or one named by its content that holds its files alone."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    has_weights = bool(names & {"float.h5", "qat.h5"})
    if folder.name.startswith(".aside-"):
        return has_weights or not names
    return has_weights and names <= set(FILES) and bool(re.fullmatch(r".+-[0-9a-f]{8}", folder.name))


def _write_index(zoo, cards):
    write_text(zoo / INDEX_FILE, index_to_json(cards))
    write_pages(zoo, cards)


def _make_writable(zoo):
    """Find out before minutes of work that the folder cannot be written."""
    zoo.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=zoo):
        pass
