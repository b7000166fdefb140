"""Searches replayed on a table of trainings: how many epochs each strategy spends until it has a good net.

A table has the validation accuracy of every net of a space after each epoch of one training (`tuner/exhaustive.py`).
Replaying trains nothing: a strategy that trains a net for some epochs is told the table's accuracy and charged the
epochs. Nets over the budget cost nothing and score 0, which favours the strategies that propose them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..requirement import Requirement
from ..spec import ModelSpec
from .oracle import search_space, spec_of
from .progressive import Result, walk
from .space import Space, macs

__all__ = ["STRATEGIES", "Replay", "Table", "noisy", "read_table", "replay", "seed_noise"]

WITHIN = 0.003  # of the exhaustive best: the goal


@dataclass(frozen=True)
class Table:
    """Every net of a space with its accuracy (0..1) after each epoch; the last one is its final accuracy."""

    space: Space
    curves: Mapping[ModelSpec, tuple[float, ...]]

    @property
    def epochs(self) -> int:
        """Of each training."""
        return len(next(iter(self.curves.values())))

    def fitting(self, budget: int) -> list[ModelSpec]:
        """The nets within a budget of MACs."""
        return [net for net in self.curves if macs(net) <= budget]

    def best(self, budget: int) -> float:
        """The best final accuracy within a budget of MACs."""
        return max(self.curves[net][-1] for net in self.fitting(budget))


@dataclass(frozen=True)
class Replay:
    """What one search spent and found.

    Args:
        spent: epochs spent so far, at each net that was trained to its end.
        best: the best final accuracy (0..1) among those nets so far.
        target: what is good enough.
        epochs: all that it spent.
    """

    spent: tuple[int, ...]
    best: tuple[float, ...]
    target: float
    epochs: int

    @property
    def reached(self) -> int | None:
        """Epochs spent when a net that is good enough was trained; None: there was none."""
        return next((spent for spent, best in zip(self.spent, self.best) if best >= self.target), None)

    def best_at(self, epochs: int) -> float:
        """The best final accuracy after so many epochs, 0 where no net was finished."""
        return max((best for spent, best in zip(self.spent, self.best) if spent <= epochs), default=0.0)


class _Ledger:
    """Charges a search for what it trains, and ends it where it has enough or spends too much."""

    def __init__(self, table, budget, most, stops):
        self.table, self.budget, self.most, self._stops = table, budget, most, stops
        self.target = table.best(budget) - WITHIN
        self.epochs, self.spent, self.best = 0, [], []

    def train(self, net: ModelSpec, until: int, since: int = 0) -> float:
        """Accuracy after `until` epochs of a training that went on from `since`."""
        if macs(net) > self.budget:
            return 0.0
        self.epochs += until - since
        accuracy = self.table.curves[net][until - 1]
        if until == self.table.epochs:
            self.spent.append(self.epochs)
            self.best.append(max(accuracy, *self.best[-1:], 0.0))
        return accuracy

    @property
    def is_over(self) -> bool:
        return self.epochs >= self.most or (self._stops and bool(self.best) and self.best[-1] >= self.target)

    def result(self) -> Replay:
        return Replay(tuple(self.spent), tuple(self.best), self.target, self.epochs)


def replay(strategy: str, table: Table, budget: int, *, seed: int, most: int, stops: bool = False) -> Replay:
    """One search on a table.

    Args:
        strategy: a name of STRATEGIES.
        budget: of MACs.
        seed: of the strategy.
        most: epochs after which it is ended.
        stops: end it once a net is good enough.
    """
    ledger = _Ledger(table, budget, most, stops)
    STRATEGIES[strategy](ledger, seed)
    return ledger.result()


def _walk(ledger, seed, prunes=True):
    requirement, results = Requirement(max_macs=ledger.budget), {}
    epochs = ledger.table.epochs

    def excess(spec):
        return requirement.excess({"macs": macs(spec)})

    while not ledger.is_over:
        state = walk(ledger.table.space, requirement, results, excess=excess, seed=seed)
        if state.finished:
            return
        proposal = state.pending[0]
        curve = ledger.table.curves[proposal.spec]
        best, end = 0.0, epochs
        for epoch, least in enumerate(proposal.threshold[: epochs - 1] if prunes else (), 1):
            best = max(best, curve[epoch - 1])
            if best < least:
                end = epoch
                break
        accuracy = ledger.train(proposal.spec, end)
        results[proposal.spec] = Result(accuracy, curve[:end], pruned=end < epochs)


def _walk_whole(ledger, seed):
    _walk(ledger, seed, prunes=False)


def _random(ledger, seed):
    from ._keras_tuner import keras_tuner

    _stock(ledger, keras_tuner.oracles.RandomSearchOracle, seed, {"max_trials": len(ledger.table.curves)})


def _grid(ledger, seed):
    """In GridSearchOracle's own order; the seed says at which of its nets it starts, for it has none of its own."""
    from ._keras_tuner import keras_tuner

    start = int(np.random.default_rng(seed).integers(len(ledger.table.curves))) if seed else 0
    order = []
    _stock(_Recorder(ledger.table, order), keras_tuner.oracles.GridSearchOracle, 1, {})
    for net in order[start:] + order[:start]:
        if ledger.is_over:
            return
        ledger.train(net, ledger.table.epochs)


def _bayesian(ledger, seed):
    from ._keras_tuner import keras_tuner

    _stock(ledger, keras_tuner.oracles.BayesianOptimizationOracle, seed, {"max_trials": len(ledger.table.curves)})


def _hyperband(ledger, seed):
    from ._keras_tuner import keras_tuner

    options = {"max_epochs": ledger.table.epochs, "hyperband_iterations": 1_000}
    _stock(ledger, keras_tuner.oracles.HyperbandOracle, seed, options)


class _Recorder(_Ledger):
    """Notes the order of proposals and charges nothing."""

    def __init__(self, table, order):
        super().__init__(table, max(map(macs, table.curves)), np.inf, False)
        self._order = order

    def train(self, net, until, since=0):
        self._order.append(net)
        return 0.5


def _stock(ledger, kind: Callable, seed: int, options: dict):
    """Drive one of KerasTuner's oracles as its tuner does."""
    from ._keras_tuner import keras_tuner

    space = ledger.table.space
    oracle = kind(
        objective=keras_tuner.Objective("accuracy", "max"),
        hyperparameters=search_space(space.spec, space.widths),
        seed=1 + 10_000 * seed,  # it takes 0 for none, and adds 1 for each trial: seeds nearby are one sequence shifted
        **options,
    )
    oracle.verbose = 0
    oracle.save = oracle._save_trial = _nothing  # a replay is not resumed
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fits that did not converge
        oracle._set_project_dir(folder, "replay")
        while not ledger.is_over:
            trial = oracle.create_trial("tuner0")
            if trial.status != "RUNNING":
                return
            values = trial.hyperparameters.values
            until = values.get("tuner/epochs", ledger.table.epochs)
            accuracy = ledger.train(spec_of(space, values), until, values.get("tuner/initial_epoch", 0))
            oracle.update_trial(trial.trial_id, {"accuracy": accuracy})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)


def _nothing(*_):
    return None


STRATEGIES = {
    "walk": _walk,
    "walk, nothing given up": _walk_whole,
    "RandomSearch": _random,
    "GridSearch": _grid,
    "BayesianOptimization": _bayesian,
    "Hyperband": _hyperband,
}


def read_table(rows: Sequence[Mapping[str, str]], spec: ModelSpec, seed: int = 0) -> Table:
    """A table from the rows of `tuner/exhaustive.py`.

    Args:
        rows: of the CSV.
        spec: gives width, stages, input shape and classes.
        seed: which trainings.

    Raises:
        ValueError: nets of the space are missing.
    """
    space = Space(spec, (spec.width,))
    curves = {}
    for row in rows:
        if int(row["seed"]) == seed:
            net = space.net(tuple(map(int, row["level"].split("."))))
            curves[net] = tuple(float(v) for k, v in row.items() if k.startswith("epoch_"))
    absent = [net.name for net in space.nets() if net not in curves]
    if absent:
        raise ValueError(f"the table lacks {len(absent)} nets of seed {seed}, e.g. {absent[0]}; train them first")
    return Table(space, curves)


def seed_noise(rows: Sequence[Mapping[str, str]]) -> tuple[float, int]:
    """Standard deviation (0..1) of a final accuracy over seeds, from nets trained with two, and how many those are."""
    last = list(rows[0])[-1]
    finals: dict[str, list[float]] = {}
    for row in rows:
        finals.setdefault(row["name"], []).append(float(row[last]))
    pairs = [values for values in finals.values() if len(values) > 1]
    return (float(np.sqrt(np.mean([np.var(v, ddof=1) for v in pairs]))) if pairs else 0.0), len(pairs)


def noisy(table: Table, deviation: float, seed: int) -> Table:
    """A table as it might have come out with other seeds: each net's whole curve shifted at random; seed 0 leaves it."""
    if not seed or not deviation:
        return table
    random = np.random.default_rng(seed)
    shifts = random.normal(0, deviation, len(table.curves))
    curves = {net: tuple(v + s for v in curve) for (net, curve), s in zip(table.curves.items(), shifts)}
    return Table(table.space, curves)
