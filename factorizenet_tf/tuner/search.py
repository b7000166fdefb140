"""Run a whole search: trainings, a table of all nets considered, the frontier, a summary; publish its nets."""

import contextlib
import math
import os
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import zoo
from ..console import Progress
from ..data import Dataset
from ..files import write_csv, write_text
from ..loading import Source
from ..recipe import Recipe
from ..requirement import COSTS, MEASURED, Requirement, frontier
from ..spec import ModelSpec
from ..zoo.publishing import PublishError
from .oracle import REASON, ROUND, FactorizationOracle, TrialStatus, last_line, result_of
from .tuner import OBJECTIVES, FactorizationTuner

__all__ = ["SearchResult", "publish_found", "report", "search"]

NOISE_DEVIATIONS = 3  # of a binomial count; the best of many nets is above chance by luck, too


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
        folder: has results.csv, summary.txt, frontier.png (with extra `report`), and a run in each trial's folder.
        best: the net found, or None.
        rows: results.csv: a dict for every trial and every net rejected untrained, with its reason.
        steps: a line for each round, with its purpose and its outcome.
        summary: the answer in a few lines.
        meets_requirement: whether the best net keeps to the requirement, its floor included.
    """

    folder: Path
    best: ModelSpec | None
    rows: list[dict]
    steps: list[str]
    summary: str
    meets_requirement: bool

    def run_folder(self, name: str) -> Path:
        """Give the folder of a net's finished training. Raises KeyError if there is none."""
        trials = {row["name"]: row["trial"] for row in self.rows if row["status"] == "trained"}
        return self.folder / f"trial_{trials[name]}" / "run"


def search(
    oracle: FactorizationOracle,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    inherit: bool = False,
    initial: str | os.PathLike | Source | None = None,
    prune: bool = True,
    executor: Executor | None = None,
    verbose: bool = True,
) -> SearchResult:
    """Search for the best net under the oracle's requirement; the same call continues a search that was killed.

    Args:
        oracle: a new one; it has the requirement and the nets to choose from.
        dataset, recipe, inherit, initial, prune: as for `FactorizationTuner`.
        out: the search's folder.
        executor: as for `FactorizationTuner.search`.
        verbose: print progress on stderr.

    Raises:
        ValueError: arguments do not fit, no net fits the requirement, or the folder holds another search.
        RuntimeError: three trials failed in a row, or another process searches in the folder.
        OSError: a folder cannot be written, the disk is full, or an executor lost a machine for good.
    """
    if "KERASTUNER_ORACLE_IP" in os.environ:
        raise ValueError(
            "KERASTUNER_ORACLE_IP is set; KerasTuner's chief and workers are FactorizationTuner's, this search takes an "
            "executor (--ray): unset it"
        )
    out = Path(out).expanduser().resolve()
    with Progress(verbose) as progress:
        progress.say(oracle.space.describe())
        oracle.say = progress.say
        tuner = FactorizationTuner(
            oracle,
            dataset,
            recipe=recipe,
            inherit=inherit,
            initial=initial,
            prune=prune,
            progress=progress,
            directory=out.parent,
            project_name=out.name,
        )
        tuner.search(executor)
    return report(oracle, dataset, out)


def report(oracle: FactorizationOracle, dataset: Dataset, folder: Path) -> SearchResult:
    """Write results.csv, frontier.png and summary.txt of what a search has found so far."""
    state, objective, requirement = oracle.walk(), oracle.objective.name, oracle.requirement
    rows = [_trial_row(oracle, trial) for trial in oracle.trials.values()]
    rows += [_rejected_row(oracle, rows[0], spec, reason) for spec, reason in state.rejected.items() if rows]
    meets = state.best is not None and (requirement.min_accuracy is None or state.reaches_floor)
    summary = _summary(oracle, state, rows, meets, dataset)
    found = SearchResult(folder, state.best, rows, state.steps, summary, meets)
    if rows:
        write_csv(folder / "results.csv", rows)
    write_text(folder / "summary.txt", summary + "\n")
    with contextlib.suppress(ModuleNotFoundError):  # the extra `report` is not installed
        from ..plots import search_frontier

        title = f"{dataset.title}, validation: {_required(requirement)}"
        search_frontier(rows, objective, folder / "frontier.png", title=title)
    return found


def publish_found(found: SearchResult, zoo_dir: str | os.PathLike, *, verbose: bool = True) -> None:
    """Publish the frontier and the best net of a search in a zoo folder; progress names nets that may not be published.

    Raises:
        RuntimeError: the best net may not be published; the others have been.
        OSError: the folder cannot be written.
    """
    trained = [row for row in found.rows if row["status"] == "trained"]
    names = [row["name"] for row in frontier(trained, "macs", "val_int8_accuracy")]
    best = [found.best.name] * (found.best is not None)
    refused = {}
    with Progress(verbose) as progress:
        for name in dict.fromkeys(names + best):
            try:
                cards = zoo.publish(found.run_folder(name), zoo_dir=Path(zoo_dir).expanduser(), verbose=False)
                progress.say(f"published in {zoo_dir}: {', '.join(card.reference for card in cards)}")
            except FileExistsError as error:
                progress.say(f"{name}: {error}")
            except PublishError as error:
                refused[name] = error
                progress.say(str(error))
    for name in refused.keys() & best:
        raise RuntimeError(f"the answer is not published, it is in {found.folder}: {refused[name]}")


def _trial_row(oracle, trial):
    spec, values = oracle.net(trial), trial.hyperparameters.values
    result = result_of(trial, oracle.objective.name)
    status = {TrialStatus.FAILED: "failed", TrialStatus.COMPLETED: "trained"}.get(trial.status, "not finished")
    reasons = [values.get(REASON, ""), last_line(trial)]
    if result.pruned:
        status = "given up"
    elif status == "trained" and (violation := oracle.violation(spec)) is not None:  # costs were measured again
        status = "over budget"
        reasons.append(violation)

    def metric(name):
        is_final = status in ("trained", "over budget") and trial.metrics.exists(name)
        return round(float(trial.metrics.get_last_value(name)), 6) if is_final else ""

    return {
        "trial": trial.trial_id,
        **oracle.space.columns(spec),
        "status": status,
        "reason": ": ".join(filter(None, reasons)),
        "round": values.get(ROUND, ""),
        "float_epochs": len(result.curve),
        **{name: metric(name) for name in OBJECTIVES},
        **{cost: oracle.costs.cached(spec).get(cost, metric(cost)) for cost in MEASURED},
        "seconds": metric("seconds"),
    }


def _rejected_row(oracle, row, spec, reason):
    known = {**oracle.space.columns(spec), "status": "rejected", "reason": reason, **oracle.costs.cached(spec)}
    return {key: known.get(key, "") for key in row}


def _required(requirement: Requirement) -> str:
    parts = [f"{cost} <= {limit:,}" for cost, limit in requirement.limits.items()]
    if requirement.min_accuracy is not None:
        parts.append(f"accuracy >= {100 * requirement.min_accuracy:g} %")
    return ", ".join(parts)


def _summary(oracle, state, rows, meets, dataset):
    counts = {status: sum(row["status"] == status for row in rows) for status in ("trained", "given up", "failed")}
    counted = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines = [f"required: {_required(oracle.requirement)}", *state.steps]
    lines += [oracle.space.describe()] * oracle.space.has_more_than_levels
    lines.append(f"of {oracle.space.count():,} nets {len(oracle.trials)} were tried ({counted or 'none ended'})")
    if state.best is None:
        return "\n".join([*lines, "nothing was found: no training ended"])
    row = next(row for row in rows if row["name"] == state.best.name)
    what = "the answer is" if meets else "no net reaches the floor; the best is"
    costs = ", ".join(f"{row[cost]:,.10g} {cost}" for cost in COSTS if row[cost] != "")
    accuracy, objective = row[oracle.objective.name], oracle.objective.name
    lines.append(
        f"{what} {state.best.name}: {100 * accuracy:.2f} % {objective}, {costs} ({row['reason']}); its run is trial_{row['trial']}/run"
    )
    lines += _chance_warning(accuracy, dataset)
    lines.append("points that another choice in one stage alone would add or take, estimated from all trainings:")
    changes = oracle.effects()
    for respect, nets in oracle.space.alternatives(state.best).items():
        choices = f"0 to {max(nets)}" if respect.endswith("level") else ", ".join(f"{choice:g}" for choice in nets)
        effects = {choice: "not tried" if c is None else f"{c:+.1f}" for choice, c in changes[respect].items()}
        texts = ["it is here" if net == state.best else effects[choice] for choice, net in nets.items()]
        lines.append(f"  {respect} {choices}: {', '.join(texts)}")
    return "\n".join(lines)


def _chance_warning(accuracy: float, dataset: Dataset) -> list[str]:
    """Say, in a list of one line, that an accuracy is not above that of always answering the most frequent class."""
    labels = dataset.validation.labels
    chance = float(np.bincount(labels).max() / len(labels))
    noise = NOISE_DEVIATIONS * math.sqrt(chance * (1 - chance) / len(labels))
    if accuracy > chance + noise:
        return []
    return [
        f"this does not differ from chance: always answering the same class gives up to {100 * chance:.1f} %, and "
        f"{len(labels):,} images show no difference below {100 * noise:.1f} points; the choice means nothing, train for more epochs"
    ]
