"""Progressive depth factorization in one call: train, quantize and analyze level by level, then choose the best."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import zoo as zoo_module
from ..console import Progress, require_extra
from ..data import Dataset
from ..files import write_csv, write_text
from ..loading import resolve
from ..recipe import Recipe, recipe_for
from ..requirement import COSTS, Requirement, best
from ..runs import dataset_fingerprint, open_folder
from ..spec import ModelSpec, level_text
from ..training.train import train
from .analyze import analyze
from .report import report_html
from .summary import net_table
from .tables import Analysis, concat, load_analysis

__all__ = ["LevelChoice", "Study", "choose_level", "study"]

PRECISIONS = ("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite")
ACCURACY = "validation_tflite"  # what levels are chosen by; the test split is never chosen by
LIMITS = tuple(f"max_{cost}" for cost in COSTS)


@dataclass(frozen=True)
class LevelChoice:
    """The best level under one requirement, e.g. "max_macs=2000000": its net's name, or None if none meets it, and the reason."""

    requirement: str
    name: str | None
    why: str


@dataclass(frozen=True, eq=False)
class Study:
    """What a study found.

    Args:
        folder: holds study.json, dataset.json, study.csv, answers.csv, report.html, figures/, analyses/ and runs/.
        rows: a dict a level: cost, validation and test accuracies by precision, distribution and error figures.
        analysis: of all levels.
        answers: one for each requirement.
    """

    folder: Path
    rows: list[dict]
    analysis: Analysis
    answers: tuple[LevelChoice, ...]


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
    """Train each spec (or take it from the zoo), quantize and analyze it; then choose levels and write a report.

    Called again with the same arguments, it continues where it was stopped.

    Args:
        dataset: from `load_dataset`.
        specs: the levels, coarse to fine.
        out: the study's folder.
        recipe: of all trainings; None: the data set's own. It must have a QAT phase.
        requirements: fields of `Requirement`, each answered separately: for `max_macs`, `max_size_bytes`, `max_ram_bytes` and
            `max_latency_ms` the highest int8 validation accuracy that fits; for `min_accuracy` (0..1) the fewest MACs whose
            int8 validation accuracy reaches it.
        zoo_dir: a zoo to take nets from if it has the same net, recipe and data; None: the package's own and that of
            FACTORIZENET_ZOO.
        train_all: train all nets, taking none from a zoo.
        sensitivity: measure it, too; takes minutes for each level.
        verbose: print progress on stderr.

    Raises:
        ModuleNotFoundError: the extra `report`, or `micro` for `max_ram_bytes`, is not installed.
        ValueError, TypeError: an invalid requirement, no QAT phase, no specs, or a folder that holds another study.
        OSError, DivergedError: as `train`.
    """
    require_extra("altair", "vl_convert", "pyarrow", extra="report", what="a study's report and tables")
    from ..plots import write_figures

    recipe = recipe or recipe_for(dataset.name, begun=out)
    requirements = dict(requirements or {})
    folder = Path(out)
    _check(specs, recipe, requirements)
    _open_folder(folder, dataset, specs, recipe, sensitivity)
    rows, analyses = [], []
    with Progress(verbose) as progress:
        for spec in specs:
            progress.say(f"{spec.name}: level {spec.level}")
            card = None if train_all else _published(spec, dataset, recipe, zoo_dir)
            if card is None:
                source = train(spec, dataset, out=folder / "runs" / spec.name, recipe=recipe, verbose=verbose)
                numbers, scores = source.metrics | _ram(source), source.metrics["accuracy"]
                row = _row(spec, "trained", numbers, scores, source.int8_model())
            else:
                source = resolve(card.reference, zoo_dir=card.zoo)
                row = _row(spec, "zoo", vars(card), card.accuracies, source.int8_model())
            saved = folder / "analyses" / spec.name
            if not saved.exists():
                analysis = analyze(source, dataset=dataset, sensitivity=sensitivity, verbose=verbose)
                # the net's own name, whether it came from the zoo (`fnet-l2-int8`) or from a run
                analysis.renamed({analysis.names[0]: spec.name}).save(saved)
            analyses.append(load_analysis(saved))
            rows.append(row | _layer_numbers(analyses[-1]))
            write_csv(folder / "study.csv", rows)
        progress.say("writing figures and report")
        analysis = concat(analyses)
        answers = tuple(choose_level(rows, name, value) for name, value in requirements.items())
        (folder / "answers.csv").unlink(missing_ok=True)  # of an earlier call
        if answers:
            write_csv(folder / "answers.csv", [dataclasses.asdict(answer) for answer in answers])
        write_figures(analysis, folder / "figures")
        title = f"Levels of depth factorization on {dataset.title}"
        write_text(folder / "report.html", report_html(analysis, title=title))
    return Study(folder, rows, analysis, answers)


def choose_level(rows: Sequence[dict], name: str, value: float) -> LevelChoice:
    """Choose the best of a study's rows under one field of `Requirement`, by int8 validation accuracy; raises as that does."""
    requirement = Requirement(**{name: value})
    text = f"{name}={getattr(requirement, name):g}" if isinstance(value, float) else f"{name}={value}"
    is_limit = name in LIMITS
    cost = name.removeprefix("max_") if is_limit else "macs"
    if chosen := best(rows, requirement, accuracy=ACCURACY):
        praise = "most accurate level that fits" if is_limit else "fewest of the levels that reach it"
        why = f"{chosen[cost]:,} {cost}, the {praise}: {100 * chosen[ACCURACY]:.2f} % on validation as int8"
        return LevelChoice(text, chosen["name"], why)
    if not is_limit:
        top = best(rows, accuracy=ACCURACY)
        why = f"no level reaches it; the highest is {top['name']} with {100 * top[ACCURACY]:.2f} %"
    elif known := [row for row in rows if row[cost] is not None]:
        least = min(known, key=lambda row: row[cost])
        why = f"no level fits; the smallest is {least['name']} with {least[cost]:,} {cost}"
    else:
        why = f"no level has a {cost}; pip install 'factorizenet_tf[micro]' to measure RAM"
    return LevelChoice(text, None, why)


def _check(specs, recipe, requirements):
    if not specs:
        raise ValueError("no levels to study; give at least one spec")
    names = [spec.name for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is given twice; give each level once")
    for spec in specs:
        if _family(spec) != _family(specs[0]):
            what = f"{spec.name} differs from {specs[0].name} in more than its level"
            raise ValueError(f"{what}; study one family at a time")
    if not recipe.qat_epochs:
        raise ValueError("qat_epochs is 0; a study compares quantization-aware training, too: use at least 1")
    if requirements:
        Requirement(**requirements)
    if "max_ram_bytes" in requirements:
        require_extra("tflite_micro", extra="micro", what="measuring RAM")


def _family(spec):
    return json.loads(spec.to_json()) | {"level": None}


def _open_folder(folder, dataset, specs, recipe, sensitivity):
    """Make the folder this study's own, or find that it is; more levels may come later, anything else is another study."""
    about = {
        "dataset": dataset.title,
        "images": [len(split) for split in dataset.splits.values()],
        "recipe": json.loads(recipe.to_json()),
        "sensitivity": sensitivity,
        "macro": _family(specs[0]),
    }
    texts = {"study.json": json.dumps(about, indent=2) + "\n", "dataset.json": dataset_fingerprint(dataset)}
    open_folder(folder, texts, "study")


def _published(spec, dataset, recipe, zoo_dir):
    """The card of the same net, data and recipe, or None."""
    wanted = json.loads(recipe.to_json())
    cards = zoo_module.list(precision="int8", zoo_dir=zoo_dir)
    same = (card for card in cards if (card.spec, card.dataset, card.recipe) == (spec, dataset.title, wanted))
    return next(same, None)


def _row(spec, origin, numbers, accuracies, int8) -> dict:
    """A level's costs and accuracies; a card's latency is another machine's than the trained nets', so it is measured here."""
    level = spec.level if isinstance(spec.level, int) else level_text(spec.level)
    row = {"name": spec.name, "level": level, "origin": origin}
    row |= {key: numbers[key] for key in ("macs", "params", "size_bytes", "ram_bytes")}
    row["latency_ms"] = round(int8.latency_ms().median_ms, 4)
    return row | {f"{split}_{p}": scores[p] for split, scores in accuracies.items() for p in PRECISIONS}


def _ram(run):
    """Bytes of the TFLite Micro arena, or None where tflite-micro is not installed."""
    try:
        from ..tflite.micro import arena_bytes

        return {"ram_bytes": arena_bytes((run.folder / "model.tflite").read_bytes())}
    except ModuleNotFoundError:
        return {"ram_bytes": None}


def _layer_numbers(analysis: Analysis) -> dict:
    """What a level's layers show, in a few numbers."""
    (row,) = net_table(analysis).to_dict("records")
    found = {"channel_precision_3x3": round(row["channel_precision_3x3"], 4)}
    for scheme in ("per_tensor", "per_channel", "qat"):
        decibels = row[f"logits_{scheme}_sqnr_db"]
        found[f"logits_sqnr_db_{scheme}"] = None if decibels is None else round(decibels, 2)
    return found
