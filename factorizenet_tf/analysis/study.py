"""Progressive depth factorization in one call: level by level trained, quantized, analysed; the best for a requirement."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import zoo as zoo_module
from ..console import Progress
from ..data import Dataset
from ..files import remove_asides, write_csv, write_text
from ..recipe import Recipe, recipe_for
from ..runs import Run
from ..spec import ModelSpec
from ..training.train import train
from .analyze import analyze
from .layer_figures import write_figures
from .report import report_html
from .tables import Analysis, join, load_analysis

__all__ = ["LIMITS", "PRECISIONS", "Answer", "Study", "best_level", "study"]

PRECISIONS = ("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite")
# A requirement -> the column it bounds.
LIMITS = {
    "max_macs": "macs",
    "max_size_bytes": "size_bytes",
    "max_latency_ms": "latency_ms",
    "max_ram_bytes": "ram_bytes",
}


@dataclass(frozen=True)
class Answer:
    """The best level under a requirement.

    Args:
        requirement: e.g. "max_macs=2000000".
        name: of the net; None where no level meets it.
        why: in words, with the numbers.
    """

    requirement: str
    name: str | None
    why: str


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found.

    Args:
        folder: holds study.json, study.csv, study.md, report.html, figures/, analyses/ and runs/.
        rows: a dict a level: cost, validation and test accuracies by precision, distribution and error figures.
        analysis: of all levels.
        answers: one for each requirement.
    """

    folder: Path
    rows: list[dict]
    analysis: Analysis
    answers: tuple[Answer, ...]


def study(
    dataset: Dataset,
    specs: Sequence[ModelSpec],
    *,
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    requirements: Mapping[str, float] | None = None,
    zoo_dir: str | os.PathLike | None = None,
    train_all: bool = False,
    sensitivity: bool = False,
    verbose: bool = True,
) -> Study:
    """Raise the granularity spec by spec: train (or take from the zoo), quantize, analyse; then choose and report.

    Called again with the same arguments it goes on where it was stopped.

    Args:
        dataset: from `load_dataset`.
        specs: the levels, coarse to fine.
        out: the study's folder.
        recipe: of all trainings; None: the data set's own. It must have a QAT phase.
        requirements: `max_macs`, `max_size_bytes`, `max_latency_ms`, `max_ram_bytes` (each: the highest int8 validation
            accuracy that fits) and `min_accuracy` (0..1: the fewest MACs whose int8 validation accuracy reaches it).
        zoo_dir: take nets from this zoo where it has the same net, recipe and data; None: from the package's own and
            that of FACTORIZENET_ZOO.
        train_all: take none from a zoo.
        sensitivity: measure it, too.
        verbose: say how far it is.

    Raises:
        ValueError: unknown requirements, no QAT phase, no specs, or a folder that holds another study.
        OSError, NanLossError: as `train`.
    """
    recipe = recipe or recipe_for(dataset.name)
    requirements = dict(requirements or {})
    folder = Path(out)
    _check(specs, recipe, requirements)
    _claim(folder, dataset, specs, recipe, sensitivity)
    rows, analyses = [], []
    with Progress(verbose) as progress:
        for spec in specs:
            progress.say(f"{spec.name}: level {spec.level}")
            published = None if train_all else _published(spec, dataset, recipe, zoo_dir)
            if published is None:
                run = train(spec, dataset, out=folder / "runs" / spec.name, recipe=recipe, verbose=verbose)
                source, row = run, _trained_row(run)
            else:
                source, row = published.name, _published_row(published, zoo_dir)
            analysis = _analysed(
                folder / "analyses" / spec.name, spec.name, source, dataset, zoo_dir, sensitivity, verbose
            )
            analyses.append(analysis)
            rows.append(row | _figures_of(analysis))
            write_csv(folder / "study.csv", rows)
        analysis = join(analyses)
        answers = tuple(best_level(rows, name, value) for name, value in requirements.items())
        progress.say("writing figures and report")
        write_figures(analysis, folder / "figures")
        write_text(
            folder / "report.html", report_html(analysis, title=f"Levels of depth factorization on {dataset.title}")
        )
        write_text(folder / "study.md", _page(dataset, rows, answers))
    return Study(folder, rows, analysis, answers)


def best_level(rows: Sequence[dict], name: str, value: float) -> Answer:
    """The answer to one requirement, by int8 validation accuracy; the test split is never chosen by."""
    text = f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
    if name == "min_accuracy":
        fit = [row for row in rows if row["validation_tflite"] >= value]
        if not fit:
            top = max(rows, key=_accuracy)
            why = f"no level reaches it; the highest is {top['name']} with {100 * _accuracy(top):.2f} %"
            return Answer(text, None, why)
        best = min(fit, key=lambda row: row["macs"])
        why = f"{best['macs']:,} MACs, the fewest of {len(fit)} levels that reach it"
    else:
        column = LIMITS[name]
        fit = [row for row in rows if row[column] is not None and row[column] <= value]
        if not fit:
            known = [row for row in rows if row[column] is not None]
            if not known:
                return Answer(
                    text, None, f"no level has a {column}; pip install 'factorizenet_tf[micro]' to measure RAM"
                )
            least = min(known, key=lambda row: row[column])
            return Answer(text, None, f"no level fits; the smallest is {least['name']} with {least[column]:,} {column}")
        best = max(fit, key=lambda row: (_accuracy(row), -row["macs"]))
        why = f"{best[column]:,} {column}, the most accurate of {len(fit)} levels that fit"
    return Answer(text, best["name"], f"{why}: {100 * _accuracy(best):.2f} % on validation as int8")


def _accuracy(row):
    return row["validation_tflite"]


def _check(specs, recipe, requirements):
    if not specs:
        raise ValueError("no levels to study; give at least one spec")
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice; give each level once")
    if not recipe.qat_epochs:
        raise ValueError("qat_epochs is 0; a study compares quantization-aware training, too: use at least 1")
    unknown = sorted(requirements.keys() - LIMITS.keys() - {"min_accuracy"})
    if unknown:
        raise ValueError(f"unknown requirements {', '.join(unknown)}; there are {', '.join((*LIMITS, 'min_accuracy'))}")
    floor = requirements.get("min_accuracy")
    if floor is not None and not 0 < floor <= 1:
        raise ValueError(f"min_accuracy is {floor}; it must be a share above 0 and at most 1")


def _claim(folder, dataset, specs, recipe, sensitivity):
    """Make the folder this study's own; more levels may come later, anything else is another study."""
    wanted = {
        "dataset": dataset.title,
        "images": [len(dataset.train), len(dataset.validation), len(dataset.test)],
        "recipe": json.loads(recipe.to_json()),
        "sensitivity": sensitivity,
        "macro": json.loads(specs[0].to_json()) | {"level": None},
    }
    for spec in specs:
        if json.loads(spec.to_json()) | {"level": None} != wanted["macro"]:
            raise ValueError(
                f"{spec.name} differs from {specs[0].name} in more than its level; study one family at a time"
            )
    path = folder / "study.json"
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"the folder {folder} holds other files and no study; choose a new one")
        write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    remove_asides(folder)
    try:
        there = json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is damaged; restore it, or choose a new folder") from None
    differing = [key for key, value in wanted.items() if there.get(key) != value]
    if differing:
        raise ValueError(
            f"the folder {folder} holds another study (its {', '.join(differing)} differ); choose a new one"
        )


def _published(spec, dataset, recipe, zoo_dir):
    """The card of the same net, data and recipe, or None."""
    wanted = json.loads(recipe.to_json())
    for card in zoo_module.list(precision="int8", zoo_dir=zoo_dir):
        if card.spec == spec and card.dataset == dataset.title and card.recipe == wanted:
            return card
    return None


def _analysed(folder, name, source, dataset, zoo_dir, sensitivity, verbose):
    if (folder / "analysis.json").is_file():
        return load_analysis(folder)
    if folder.exists():  # a kill left it half written
        shutil.rmtree(folder)
    analysis = analyze(source, dataset=dataset, zoo_dir=zoo_dir, sensitivity=sensitivity, verbose=verbose)
    analysis = _renamed(analysis, name)
    analysis.save(folder)
    return analysis


def _renamed(analysis: Analysis, name: str) -> Analysis:
    """The same with the net's own name, whether it came from the zoo (`fnet-l2-int8`) or a run."""
    tables = {key: getattr(analysis, key).assign(net=name) for key in analysis.__dataclass_fields__}
    return Analysis(**tables)


def _trained_row(run: Run) -> dict:
    metrics = run.metrics
    costs = {key: metrics[key] for key in ("macs", "params", "size_bytes")}
    costs |= {"ram_bytes": _ram(run), "latency_ms": _latency(run.int8_model())}
    return _row(run.spec, "trained", costs, metrics["accuracy"])


def _published_row(card, zoo_dir) -> dict:
    """The card's numbers; latency is measured here, since the card's is another machine's than the trained nets'."""
    costs = {key: getattr(card, key) for key in ("macs", "params", "size_bytes", "ram_bytes")}
    costs["latency_ms"] = _latency(zoo_module.load(card.name, format="tflite", zoo_dir=zoo_dir))
    return _row(card.spec, "zoo", costs, card.accuracies)


def _row(spec, origin, costs, accuracies):
    level = spec.level if isinstance(spec.level, int) else ".".join(map(str, spec.level))
    by_split = {f"{split}_{p}": accuracies[split][p] for split in ("validation", "test") for p in PRECISIONS}
    return {"name": spec.name, "level": level, "origin": origin} | costs | by_split


def _latency(model):
    return round(model.latency_ms().median_ms, 4)


def _ram(run):
    """Bytes of the TFLite Micro arena, or None where tflite-micro is not installed."""
    try:
        from ..tflite.micro import arena_bytes

        return arena_bytes((run.folder / "model.tflite").read_bytes())
    except ModuleNotFoundError:
        return None


def _figures_of(analysis: Analysis) -> dict:
    """A level's distribution and error in a few numbers."""
    weights = analysis.weights
    spatial = weights[
        (weights["source"] == "float") & (weights["tensor"] == "folded") & weights["layer"].str.endswith("_spatial")
    ]
    row = {"channel_precision_3x3": round(float(spatial["average_channel_precision"].mean()), 4)}
    errors = analysis.errors
    for scheme in ("per_tensor", "per_channel", "qat"):
        chosen = errors[(errors["scheme"] == scheme) & (errors["weight_bits"] == 8)]
        last = chosen["accumulated_sqnr_db"].replace([np.inf, -np.inf], np.nan)
        row[f"logits_sqnr_db_{scheme}"] = round(float(last.iloc[-1]), 2) if len(last) else None
    return row


def _page(dataset, rows, answers):
    head = ["net", "MACs", "bytes", "ms", *(p.replace("_", " ") for p in PRECISIONS), "3x3 channel precision"]
    lines = [
        f"# Levels of depth factorization on {dataset.title}",
        "",
        f"Test accuracy on {len(dataset.test):,} images; levels are chosen on {len(dataset.validation):,} validation images.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for row in rows:
        accuracies = [f"{100 * row[f'test_{p}']:.2f} %" for p in PRECISIONS]
        cells = [row["name"], f"{row['macs']:,}", f"{row['size_bytes']:,}", f"{row['latency_ms']:g}", *accuracies]
        lines.append(f"| {' | '.join([*cells, str(row['channel_precision_3x3'])])} |")
    for answer in answers:
        lines += ["", f"Under `{answer.requirement}`: {answer.name or 'none'}: {answer.why}."]
    return "\n".join(lines) + "\n"
