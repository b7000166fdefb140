"""A whole search: walk, table of every net looked at, frontier, summary, publication."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

from .. import zoo
from ..console import Progress
from ..data import Dataset
from ..files import write_csv, write_text
from ..recipe import Recipe
from ..requirement import MEASURED, Requirement, pareto_front
from ..runs import load_run
from ..spec import ModelSpec
from ..zoo.publishing import refusals
from . import chief
from ._keras_tuner import TrialStatus
from .oracle import REASON, ROUND, FactorizationOracle, result_of
from .space import macs
from .tuner import OBJECTIVES, FactorizationTuner

__all__ = ["Found", "SearchProgress", "frontier_of", "search"]


class SearchProgress:
    """Lines and a bar by Rich; silent where not verbose. Use as a context.

    Args:
        oracle: a `FactorizationOracle` of this process, asked for the best so far; None in a worker.
        verbose: whether to say anything.
    """

    def __init__(self, oracle=None, *, verbose: bool = True):
        self._oracle, self._progress = oracle, Progress(verbose)
        self._seconds: list[float] = []

    def __enter__(self) -> SearchProgress:
        self._progress.__enter__()
        return self

    def __exit__(self, *exception):
        self._progress.__exit__(*exception)

    def say(self, text: str) -> None:
        """One line."""
        self._progress.say(text)

    def begin(self, trial_id: str, spec: ModelSpec, recipe: Recipe, values: dict, done: int) -> None:
        """A trial starts, `done` of its epochs finished before.

        Args:
            values: the trial's hyperparameter values, with the walk's reason and round.
        """
        self._start = time.monotonic()
        again = f", going on after epoch {done}" if done else ""
        self.say(f"trial {int(trial_id)}: {spec.name}, {values.get(REASON, 'proposed')}{again}")
        self._bar = self._progress.bar(self._text(spec.name, values), recipe.epochs + recipe.qat_epochs, done=done)

    def epoch(self, phase: str, epoch: int, accuracy: float) -> None:
        """An epoch of the trial ended with this validation accuracy (0..1)."""
        self._bar.advance()

    def end(self, spec: ModelSpec, accuracy: float, pruned: bool) -> None:
        """The trial ended with this objective (0..1)."""
        seconds = time.monotonic() - self._start
        self._seconds.append(seconds)
        result = "given up, hopeless" if pruned else f"{100 * accuracy:.2f} %"
        self.say(f"  {spec.name}: {result}, {seconds:.0f} s")

    def _text(self, name, values):
        text = f"{name}, round {values.get(ROUND, '-')}"
        if self._oracle is None:
            return text
        walk = self._oracle.walk()
        if walk.best is not None:
            text += f", best {walk.best.name}"
        if self._seconds:
            left = len(walk.pending) * sum(self._seconds) / len(self._seconds)
            text += f", {left / 60:.0f} min left in the round"
        return text


@dataclass(frozen=True)
class Found:
    """What came of a search.

    Args:
        folder: has results.csv, summary.txt, frontier.png (with extra `report`), and a run in each trial's folder.
        best: the net found, or None.
        rows: results.csv: a dict for every trial and every net rejected untrained, with its reason.
        steps: a line for each round: what was tried, what came of it.
        summary: the answer in a few lines.
        reached: whether the best net keeps to the requirement, its floor included.
    """

    folder: Path
    best: ModelSpec | None
    rows: list[dict]
    steps: list[str]
    summary: str
    reached: bool

    def run_folder(self, name: str) -> Path:
        """The finished training of a net by its name. Raises KeyError where there is none."""
        trials = {row["name"]: row["trial"] for row in self.rows if row["status"] == "trained"}
        return self.folder / f"trial_{trials[name]}" / "run"


def search(
    spec: ModelSpec,
    dataset: Dataset,
    requirement: Requirement,
    *,
    out: str | os.PathLike,
    widths: tuple[int, ...] | None = None,
    recipe: Recipe | None = None,
    inherit: bool = False,
    prune: bool = True,
    seed: int | None = None,
    max_trials: int | None = None,
    patience: int = 3,
    publish: str | os.PathLike | None = None,
    verbose: bool = True,
) -> Found | None:
    """Search for the best net of a requirement; the same call goes on where it was killed.

    Args:
        spec, requirement, widths, seed, max_trials, patience: as for `FactorizationOracle`.
        dataset, recipe, inherit, prune: as for `FactorizationTuner`.
        out: the search's folder.
        publish: a zoo folder that the frontier and the best net are added to.
        verbose: say on stderr how far it is.

    Returns:
        What was found; None in a worker, whose chief has it.

    Raises:
        ValueError: a budget is below the smallest net, arguments do not fit, or the folder holds another search.
        RuntimeError: three trials failed in a row, or the net found may not be published; the others then are.
        OSError: a folder cannot be written or the disk is full.
    """
    out = Path(out).expanduser().resolve()
    oracle = FactorizationOracle(
        spec,
        **dataclasses.asdict(requirement),
        widths=widths,
        seed=seed,
        max_trials=max_trials,
        patience=patience,
    )
    with SearchProgress(None if chief.is_worker() else oracle, verbose=verbose) as progress:
        tuner = FactorizationTuner(
            oracle,
            dataset,
            recipe=recipe,
            inherit=inherit,
            prune=prune,
            progress=progress,
            directory=out.parent,
            project_name=out.name,
        )
        tuner.search()
        if chief.is_worker():
            return None
        found = report(oracle, dataset, out)
        if publish is not None:
            _publish(found, publish, progress, verbose)
    return found


def report(oracle: FactorizationOracle, dataset: Dataset, folder: Path) -> Found:
    """Write results.csv, frontier.png and summary.txt of what a search has found so far."""
    walk = oracle.walk()
    rows = [_trial_row(oracle, trial) for trial in oracle.trials.values()]
    rows += [_rejected_row(oracle, rows[0], spec, reason) for spec, reason in walk.rejected.items() if rows]
    floor = oracle.requirement.min_accuracy
    accuracies = {row["name"]: row[oracle.objective.name] for row in rows}
    reached = walk.best is not None and (floor is None or accuracies[walk.best.name] >= floor)
    summary = _summary(oracle, walk, rows, reached)
    found = Found(folder, walk.best, rows, walk.steps, summary, reached)
    if rows:
        write_csv(folder / "results.csv", rows)
    write_text(folder / "summary.txt", summary + "\n")
    try:
        from ..plots import search_frontier

        title = f"{dataset.title}, validation: {_required(oracle.requirement)}"
        search_frontier(
            rows, oracle.objective.name, frontier_of(rows, oracle.objective.name), folder / "frontier.png", title=title
        )
    except ModuleNotFoundError:  # the extra `report` is not installed
        pass
    return found


def frontier_of(rows: list[dict], objective: str) -> list[str]:
    """Names of the trained nets that no other beats with as few MACs, by rising MACs."""
    trained = [row for row in rows if row["status"] == "trained"]
    return [row["name"] for row in pareto_front(trained, lambda row: row["macs"], lambda row: row[objective])]


def _trial_row(oracle, trial):
    spec, values = oracle._spec(trial), trial.hyperparameters.values
    result = result_of(trial, oracle.objective.name)
    status = {TrialStatus.FAILED: "failed", TrialStatus.COMPLETED: "trained"}.get(trial.status, "not finished")
    if result.pruned:
        status = "given up"
    message = (trial.message or "").strip().rpartition("\n")[2]

    def metric(name):
        is_final = status == "trained" and trial.metrics.exists(name)
        return round(float(trial.metrics.get_last_value(name)), 6) if is_final else ""

    return {
        "trial": trial.trial_id,
        **_net_columns(spec),
        "status": status,
        "reason": values.get(REASON, "") + (f": {message}" if message else ""),
        "round": values.get(ROUND, ""),
        "float_epochs": len(result.curve),
        **{name: metric(name) for name in OBJECTIVES},
        **{cost: oracle.costs.known(spec).get(cost, metric(cost)) for cost in MEASURED},
        "seconds": metric("seconds"),
    }


def _rejected_row(oracle, row, spec, reason):
    known = {**_net_columns(spec), "status": "rejected", "reason": reason, **oracle.costs.known(spec)}
    return {key: known.get(key, "") for key in row}


def _net_columns(spec):
    return {
        "name": spec.name,
        "level": ".".join(map(str, spec.levels)),
        "width": spec.width,
        "macs": macs(spec),
    }


def _required(requirement):
    parts = [f"{cost} <= {limit:,}" for cost, limit in requirement.limits.items()]
    if requirement.min_accuracy is not None:
        parts.append(f"accuracy >= {100 * requirement.min_accuracy:g} %")
    return ", ".join(parts)


def _summary(oracle, walk, rows, reached):
    counts = {status: sum(row["status"] == status for row in rows) for status in ("trained", "given up", "failed")}
    total = oracle.space.count()
    lines = [f"required: {_required(oracle.requirement)}"]
    lines += walk.steps
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    lines.append(f"of {total:,} nets {len(oracle.trials)} were tried ({told or 'none ended'})")
    if walk.best is None:
        lines.append("nothing was found: no training ended")
    else:
        row = next(row for row in rows if row["name"] == walk.best.name)
        what = "the answer is" if reached else "no net reaches the floor; the best is"
        costs = [f"{row['macs']:,} MACs", f"{row['size_bytes']:,.0f} bytes"]
        costs += [f"{row['ram_bytes']:,.0f} bytes of RAM"] if row["ram_bytes"] != "" else []
        costs += [f"{row['latency_ms']:.3f} ms"] if "latency_ms" in oracle.requirement.limits else []
        lines.append(
            f"{what} {walk.best.name}: {100 * row[oracle.objective.name]:.2f} % {oracle.objective.name}, "
            f"{', '.join(costs)} ({row['reason']})"
        )
        lines.append("in points, estimated from all of them, another level in one stage alone would change it by:")
        for stage, changes in enumerate(oracle.stage_effects(), 1):
            here = walk.best.levels[stage - 1]
            told = ", ".join("it is here" if k == here else f"{change:+.1f}" for k, change in enumerate(changes))
            lines.append(f"  stage {stage}, level 0 to {len(changes) - 1}: {told}")
    return "\n".join(lines)


def _publish(found, folder, progress, verbose):
    names = frontier_of(found.rows, "val_int8_accuracy")
    if found.best is not None and found.best.name not in names:
        names.append(found.best.name)
    folder = Path(folder).expanduser()
    for name in names:
        reasons = refusals(load_run(found.run_folder(name)))
        if reasons:
            progress.say(f"{name} is not published: {'; '.join(reasons)}")
            continue
        try:
            cards = zoo.publish(found.run_folder(name), zoo_dir=folder, verbose=False)
            progress.say(f"published in {folder}: {', '.join(card.reference for card in cards)}")
        except FileExistsError as error:
            progress.say(f"{name}: {error}")
    if found.best is not None:
        reasons = refusals(load_run(found.run_folder(found.best.name)))
        if reasons:
            raise RuntimeError(
                f"the answer, {found.best.name}, is not published: {'; '.join(reasons)}; it is in {found.folder}"
            )
