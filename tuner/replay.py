"""Replay the walk and KerasTuner's stock oracles on the table of `exhaustive.py`: what each spends until it has a good net.

    python tuner/replay.py                      # the committed table; minutes, most of them BayesianOptimization's
    python tuner/replay.py --noise measured     # each seed on accuracies as another training might have given them

The table has the validation accuracy of every net after each epoch of one training, so a replay trains nothing: a strategy
that trains a net for some epochs is told the table's accuracy and charged the epochs. Nets over the budget cost nothing and
score 0, which favours the strategies that propose them. A net is good enough within 0.3 points of the best of all nets under
the budget. Writes replay.csv (a row for each
strategy, budget and seed), replay_summary.csv and replay.png beside the table, and prints the summary.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from exhaustive import read_rows

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.requirement import amount
from factorizenet_tf.tuner.oracle import keras_tuner, search_space
from factorizenet_tf.tuner.progressive import Result, Search, propose
from factorizenet_tf.tuner.space import Space, macs

RESULTS = Path(__file__).parent / "results"
WITHIN = 0.003  # of the exhaustive best: the goal


def main() -> None:
    """Parse, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, default=RESULTS / "exhaustive.csv", help="of exhaustive.py")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--width", type=int, default=8, help="of the table's nets")
    parser.add_argument("--size", type=int, default=32, help="of the table's images")
    parser.add_argument("--channels", type=int, default=3, help="of the table's images")
    parser.add_argument("--macro", "--stages", help="of the table's nets, e.g. 3x2,2x2,2x1 (default: the package's)")
    parser.add_argument("--seeds", type=int, default=20, help="replays of each strategy")
    parser.add_argument(
        "--max-macs", type=amount, nargs="*", help="budgets (default: a third, half, two thirds of level 0)"
    )
    parser.add_argument("--strategies", nargs="*", choices=STRATEGIES, default=list(STRATEGIES), help="which")
    parser.add_argument("--noise", default="0", help="standard deviation of an accuracy (0..1), or `measured`")
    arguments = parser.parse_args()

    rows = read_rows(arguments.table)
    if not rows:
        parser.error(f"there is no table {arguments.table}; run exhaustive.py first")
    shape = (arguments.size, arguments.size, arguments.channels)
    table = read_table(rows, fnet.ModelSpec(0, width=arguments.width, input_shape=shape, macro=arguments.macro))
    measured, nets = seed_noise(rows)
    print(
        f"{len(table.curves)} nets, {table.epochs} epochs; noise over seeds {100 * measured:.2f} points ({nets} nets)"
    )
    noise = measured if arguments.noise == "measured" else float(arguments.noise)
    largest = max(map(macs, table.curves))
    budgets = arguments.max_macs or [round(share * largest) for share in (1 / 3, 1 / 2, 2 / 3)]
    results, summary, drawn = [], [], {}
    for budget in budgets:
        total = len(table.fitting(budget)) * table.epochs
        for strategy in arguments.strategies:
            found = []
            for seed in range(arguments.seeds):
                # The walk ends by itself; the others are ended where they have what is wanted.
                options = {"seed": seed, "most": total, "stops": not strategy.startswith("walk")}
                one = replay(strategy, noisy(table, noise, seed), budget, **options)
                found.append(one)
                results.append(
                    {
                        "strategy": strategy,
                        "max_macs": budget,
                        "seed": seed,
                        "epochs_to_target": "" if one.reached is None else one.reached,
                        "epochs": one.epochs,
                        "gap_points": round(one.gap_points, 2),
                    }
                )
            drawn[budget, strategy] = found
            summary.append(_summarized(strategy, budget, found, total))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "replay.csv", results)
    write_csv(arguments.out / "replay_summary.csv", summary)
    draw_costs(drawn, table.epochs, arguments.out / "replay.png")
    show_rows(summary, title=f"Epochs until a net within 0.3 points of the best, {arguments.seeds} seeds")


def draw_costs(replays: Mapping, epochs: int, path: Path) -> None:
    """Write a PNG or SVG: by budget, the share of replayed searches that have a good enough net, over what they spent.

    Args:
        replays: (budget in MACs, strategy) -> its `Replay`s, one a seed.
        epochs: of one whole training, the unit of the axis.
        path: of the figure; its suffix says which.
    """
    rows = []
    for (budget, strategy), found in replays.items():
        reached = sorted(one.reached / epochs for one in found if one.reached is not None)
        for number, spent in enumerate([0.0, *reached]):
            share = 100 * number / len(found)
            rows.append({"budget": budget, "strategy": strategy, "spent": spent, "percent": share})
    import altair as alt

    from factorizenet_tf.plots import beside, lines, save

    x = alt.X("spent:Q", title=f"spent, in whole trainings of {epochs} epochs")
    y = alt.Y("percent:Q", title="searches within 0.3 points of the best, %", scale=alt.Scale(domain=[0, 103]))
    panels = []
    for budget in sorted({budget for budget, _ in replays}):
        chosen = [row for row in rows if row["budget"] == budget]
        panels.append(lines(chosen, x, y, "strategy", title=f"{budget / 1e6:.2f} M MACs", interpolate="step-after"))
    save(beside(panels), path)


def _summarized(strategy, budget, found, total):
    """A row over the seeds; a search that never reached the target counts as the whole exhaustive cost."""
    reached, gaps = [one.reached for one in found], [one.gap_points for one in found]
    spent = [total if epochs is None else epochs for epochs in reached]
    return {
        "strategy": strategy,
        "max_macs": budget,
        "exhaustive_epochs": total,
        "reached": f"{sum(epochs is not None for epochs in reached)}/{len(found)}",
        "median_epochs": int(np.median(spent)),
        "worst_epochs": max(spent),
        "median_share": round(float(np.median(spent)) / total, 3),
        "worst_share": round(max(spent) / total, 3),
        "median_total": int(np.median([one.epochs for one in found])),
        "median_gap_points": round(float(np.median(gaps)), 2),
        "worst_gap_points": round(max(gaps), 2),
    }


@dataclass(frozen=True)
class Table:
    """Every net of a space with its accuracy (0..1) after each epoch; the last one is its final accuracy."""

    space: Space
    curves: Mapping[fnet.ModelSpec, tuple[float, ...]]

    @property
    def epochs(self) -> int:
        """Count the epochs of each training."""
        return len(next(iter(self.curves.values())))

    def fitting(self, budget: int) -> list[fnet.ModelSpec]:
        """List the nets within a budget of MACs."""
        return [net for net in self.curves if macs(net) <= budget]

    def best(self, budget: int) -> float:
        """Give the best final accuracy within a budget of MACs."""
        return max(self.curves[net][-1] for net in self.fitting(budget))


class Replay:
    """Charge a search for what it trains, and end it where it has enough or spends too much.

    Args:
        table: of accuracies.
        budget: of MACs.
        most: epochs after which the search is ended.
        stops: end it once a net is good enough.

    Attributes:
        epochs: all that were spent.
        spent, best: at each net trained to its end the epochs so far, and the best final accuracy (0..1) so far.
        target: the accuracy that is good enough.
    """

    def __init__(self, table: Table, budget: int, most: float = np.inf, stops: bool = False):
        self.table, self.budget, self._most, self._stops = table, budget, most, stops
        self.target = table.best(budget) - WITHIN
        self.epochs, self.spent, self.best = 0, [], []

    def train(self, net: fnet.ModelSpec, until: int, since: int = 0) -> float:
        """Give the accuracy after `until` epochs of a training that went on from `since`."""
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
        """Tell whether the search is to end."""
        return self.epochs >= self._most or (self._stops and self.reached is not None)

    @property
    def reached(self) -> int | None:
        """Epochs spent when a net that is good enough was trained; None: there was none."""
        return next((spent for spent, best in zip(self.spent, self.best) if best >= self.target), None)

    @property
    def gap_points(self) -> float:
        """Give by how much the best net trained is below the best of all."""
        return 100 * (self.table.best(self.budget) - max(self.best, default=0.0))


def replay(strategy: str, table: Table, budget: int, *, seed: int, most: int, stops: bool = False) -> Replay:
    """Replay one search on a table; `strategy` is a name of STRATEGIES, `seed` its seed, the others as for `Replay`."""
    spending = Replay(table, budget, most, stops)
    STRATEGIES[strategy](spending, seed)
    return spending


def _walk(spending, seed, prunes=True):
    requirement, results, epochs = fnet.tuner.Requirement(max_macs=spending.budget), {}, spending.table.epochs
    search = Search(
        spending.table.space, requirement, lambda net: requirement.violation({"macs": macs(net)}), seed=seed
    )
    while not spending.is_over and (pending := propose(search, results).pending):
        net, curve = pending[0].spec, spending.table.curves[pending[0].spec]
        highest, end = 0.0, epochs
        for epoch, least in enumerate(pending[0].threshold[: epochs - 1] if prunes else (), 1):
            highest = max(highest, curve[epoch - 1])
            if highest < least:
                end = epoch
                break
        results[net] = Result(spending.train(net, end), curve[:end], pruned=end < epochs)


def _random(spending, seed):
    _stock(spending, keras_tuner.oracles.RandomSearchOracle, seed, {"max_trials": len(spending.table.curves)})


def _grid(spending, seed):
    """In GridSearchOracle's own order; the seed says at which of its nets it starts, for it has none of its own."""
    start = int(np.random.default_rng(seed).integers(len(spending.table.curves))) if seed else 0
    recorded, order = Replay(spending.table, max(map(macs, spending.table.curves))), []
    recorded.train = lambda net, until, since: order.append(net) or 0.5  # notes the order and charges nothing
    _stock(recorded, keras_tuner.oracles.GridSearchOracle, 1, {})
    for net in order[start:] + order[:start]:
        if spending.is_over:
            return
        spending.train(net, spending.table.epochs)


def _bayesian(spending, seed):
    _stock(spending, keras_tuner.oracles.BayesianOptimizationOracle, seed, {"max_trials": len(spending.table.curves)})


def _hyperband(spending, seed):
    options = {"max_epochs": spending.table.epochs, "hyperband_iterations": 1_000}
    _stock(spending, keras_tuner.oracles.HyperbandOracle, seed, options)


def _stock(spending, kind: Callable, seed: int, options: dict):
    space, epochs = spending.table.space, spending.table.epochs

    def train(values):
        until = values.get("tuner/epochs", epochs)
        return spending.train(space.net_from(values), until, values.get("tuner/initial_epoch", 0))

    drive(kind, search_space(space.spec, space.widths), seed, train, lambda: spending.is_over, **options)


def drive(
    kind: Callable,
    hyperparameters: keras_tuner.HyperParameters,
    seed: int,
    train: Callable[[Mapping], float],
    is_over: Callable[[], bool],
    **options,
) -> None:
    """Drive one of KerasTuner's oracles as its tuner does; `train` gives the accuracy of values."""
    oracle = kind(
        objective=keras_tuner.Objective("accuracy", "max"),
        hyperparameters=hyperparameters,
        seed=1 + 10_000 * seed,  # it takes 0 for none, and adds 1 for each trial: seeds nearby are one sequence shifted
        **options,
    )
    oracle.verbose = 0
    oracle.save = oracle._save_trial = lambda *_: None  # a replay is not resumed
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fits that did not converge
        oracle._set_project_dir(folder, "replay")
        while not is_over():
            trial = oracle.create_trial("tuner0")
            if trial.status != "RUNNING":
                return
            oracle.update_trial(trial.trial_id, {"accuracy": train(trial.hyperparameters.values)})
            trial.status = "COMPLETED"
            oracle.end_trial(trial)


STRATEGIES = {
    "walk": _walk,
    "walk, nothing given up": functools.partial(_walk, prunes=False),
    "RandomSearch": _random,
    "GridSearch": _grid,
    "BayesianOptimization": _bayesian,
    "Hyperband": _hyperband,
}


def read_table(rows: Sequence[Mapping[str, str]], spec: fnet.ModelSpec, seed: int = 0) -> Table:
    """Make a table of the rows of `exhaustive.py`.

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
    """Estimate the standard deviation (0..1) of a final accuracy over seeds, from nets trained with two; count those, too."""
    last = list(rows[0])[-1]
    finals: dict[str, list[float]] = {}
    for row in rows:
        finals.setdefault(row["name"], []).append(float(row[last]))
    pairs = [values for values in finals.values() if len(values) > 1]
    return (float(np.sqrt(np.mean([np.var(v, ddof=1) for v in pairs]))) if pairs else 0.0), len(pairs)


def noisy(table: Table, deviation: float, seed: int) -> Table:
    """Shift each net's whole curve at random, as other seeds might have; seed 0 leaves the table as it is."""
    if not seed or not deviation:
        return table
    random = np.random.default_rng(seed)
    shifts = random.normal(0, deviation, len(table.curves))
    curves = {net: tuple(v + s for v in curve) for (net, curve), s in zip(table.curves.items(), shifts)}
    return Table(table.space, curves)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
