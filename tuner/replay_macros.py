"""Replay searches over macro-architectures on formulas, which tell what no table of trainings can: how far the best is.

    python tuner/replay_macros.py --seeds 12        # minutes; --spaces to choose

A formula gives the accuracy of each net of a space: an effect of its MACs, of the level, the blocks and the channels of each
stage and of the macro-architecture, drawn for each seed, and interactions of any two choices in a stage and of equal choices in
two stages that follow each other (together INTERACTIONS points). A training adds NOISE, as measured between seeds (results/README.md). The best true accuracy within the budget is counted
out where that is possible, and climbed for with the formula at hand where it is not. Writes replay_macros.csv: for each
space and seed, how many nets fit, how many the search trained, after how many of them it had one within 1, 0.5 and 0.3 points of
the best, by how much the best it trained and the one it names are below, in true accuracy, and its slowest proposal; beside it the best
of as many nets drawn at random within the budget and, for as many formulas as asked for, of as many that KerasTuner's
BayesianOptimization proposes. Expected: a line a space on stdout.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.requirement import Requirement
from factorizenet_tf.tuner.progressive import Result, Search, propose
from factorizenet_tf.tuner.space import Space, macs

RESULTS = Path(__file__).parent / "results"
NOISE, INTERACTIONS, WITHIN = 1.1, 0.7, (1, 0.5, 0.3)  # points
CURVE = (20, 40, 60, 80, 120, 160)  # trainings after which the best so far is told
COUNTED, STARTS = 200_000, 5  # nets at most that are all looked at for the best; samples to climb from, of more
BUDGETS = (2.5, 4, 7)  # times the MACs of the smallest net, by seed in turns

SPACES = {
    "blocks": Space(fnet.ModelSpec(0, stages=((2, 2), (2, 2))), (8,), blocks=(1, 2, 3)),
    "blocks and channels": Space(fnet.ModelSpec(0, stages=((1, 2), (2, 2))), (8,), blocks=(1, 2), channels=(1, 2)),
    "macros": Space(fnet.ModelSpec(0), (8,), ("base", "2x2.2x2", "s2.2x2.2x2.2x1")),
    "two widths, blocks and channels": Space(fnet.ModelSpec(0), (8, 16), blocks=(1, 2, 3), channels=(0.5, 1)),
    "all": Space(
        fnet.ModelSpec(0),
        (16, 24),
        ("base", "s2.2x2.2x2.2x1r.2x1r", "2x2.2x2.2x2.2x2"),
        (1, 2, 3, 4),
        (0.5, 1, 1.5, 2),
    ),
}


class Formula:
    """The true accuracy of each net of a space in percent, drawn by a seed."""

    def __init__(self, space: Space, seed: int):
        random, stages = np.random.default_rng(seed), space.num_stages
        self._space = space
        self._levels = np.cumsum(random.normal(-0.3, 0.4, (stages, 12)), axis=1)
        self._levels[:, 0] = random.normal(2.5, 1, stages)
        self._best, self._loss = random.normal(0.3, 0.5, 2 * stages), random.uniform(0.3, 1, 2 * stages)
        self._families = random.normal(0, 1, len(space.families))
        stage, kind = np.arange(3 * stages) % stages, np.arange(3 * stages) // stages
        near = (stage == stage[:, None]) | ((kind == kind[:, None]) & (abs(stage - stage[:, None]) == 1))
        self._pairs = np.triu(random.normal(0, 1, near.shape), 1) * near
        choices = self._choices(space.sample(4_000, random))
        self._mean, self._deviation = choices.mean(0), np.maximum(choices.std(0), 1e-9)
        self._pairs *= INTERACTIONS / self._interactions(choices).std()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Give the accuracy of rows, float (n,)."""
        size, levels = np.log2(self._space.count_macs(rows) / 1e6), rows[:, -self._space.num_stages :]
        choices = self._choices(rows)
        of_levels = np.take_along_axis(self._levels, levels.T.astype(int), 1).sum(0)
        others = choices[:, self._space.num_stages :] - 1 - self._best
        total = 62 + 2.5 * size + self._families[rows[:, 0]] + of_levels - np.square(others) @ self._loss
        return total + self._interactions(choices)

    def _choices(self, rows):
        """Levels, and logarithms of blocks and of channels for each of the stem's, (n, 3 stages)."""
        blocks, channels, levels, before = self._space.values(rows)
        logarithms = np.log2(np.maximum(blocks, 0.5)), np.log2(np.maximum(channels, 4) / before[:, :1]) - 0.5
        return np.concatenate([np.minimum(levels, 2), *logarithms], axis=1)

    def _interactions(self, choices):
        scaled = (choices - self._mean) / self._deviation
        return np.einsum("ni,ij,nj->n", scaled, self._pairs, scaled)


def best_within(formula: Formula, space: Space, budget: int, random: np.random.Generator) -> tuple[float, int]:
    """Give the best true accuracy within a budget of MACs, and how many nets fit (estimated where too many)."""
    if space.count() <= COUNTED:
        rows = space.rows()
        fitting = rows[space.count_macs(rows) <= budget]
        return float(formula(fitting).max()), len(fitting)
    bests, shares = zip(*(_climbed(formula, space, budget, random) for _ in range(STARTS)))
    return max(bests), round(space.count() * float(np.mean(shares)))


def _climbed(formula, space, budget, random):
    """Climb for the best from one sample; gives its accuracy and the share of the sample that fits."""
    rows = space.sample(COUNTED, random)
    fitting = rows[space.count_macs(rows) <= budget]
    share, best = len(fitting) / len(rows), -np.inf
    while formula(fitting).max() > best + 1e-9:
        best = formula(fitting).max()
        top = fitting[np.argsort(-formula(fitting))[:60]]
        altered = [space.altered(np.repeat(top, 100, axis=0), changes, random) for changes in (2, 4)]
        fitting = np.concatenate([top, space.neighbours(top), *altered])
        fitting = fitting[space.count_macs(fitting) <= budget]
    return float(best), share


class Trainings:
    """Train nets of a space by a formula, with the noise of a seed, and note how far below the best each is."""

    def __init__(self, space: Space, seed: int):
        self.space, self.formula, self._random = space, Formula(space, seed), np.random.default_rng(1_000 + seed)
        self.budget = round(macs(space.smallest()) * BUDGETS[seed % len(BUDGETS)])
        self._best, self.fitting = best_within(self.formula, space, self.budget, self._random)
        self.below: list[float] = []  # points of true accuracy

    def train(self, row: Sequence[int]) -> float:
        """Give what a training of a net would have, 0..1."""
        accuracy = float(self.formula(np.array([row]))[0])
        self.below.append(self._best - accuracy)
        return (accuracy + self._random.normal(0, NOISE)) / 100

    def after(self, points: float) -> int | str:
        """Give after how many trainings one was so near the best; empty: none was."""
        return next((number for number, below in enumerate(self.below, 1) if below <= points), "")


def replay(space: Space, seed: int, patience: int = 3) -> dict[str, object]:
    """Search a space on a formula of a seed; gives a row of the table."""
    trainings = Trainings(space, seed)
    requirement = Requirement(max_macs=trainings.budget)
    search = Search(space, requirement, lambda net: requirement.violation({"macs": macs(net)}), patience)
    results, slowest = {}, 0.0
    while True:
        start = time.thread_time()
        state = propose(search, results)
        slowest = max(slowest, time.thread_time() - start)
        if not state.pending:
            break
        net = state.pending[0].spec
        results[net] = Result(trainings.train(space.row_of(net)))
    return {
        "nets": space.count(),
        "seed": seed,
        "max_macs": trainings.budget,
        "fitting": trainings.fitting,
        "trained": len(results),
        **{f"within_{points}_after": trainings.after(points) for points in WITHIN},
        **{f"below_after_{number}": round(min(trainings.below[:number]), 2) for number in CURVE},
        "best_trained_below": round(min(trainings.below), 2),
        "answer_below": round(trainings.below[[*results].index(state.best)], 2),
        "random_below": round(at_random(space, seed, len(results)), 2),
        "slowest_proposal_s": round(slowest, 2),
    }


def at_random(space: Space, seed: int, count: int) -> float:
    """Give how far the best of so many nets that fit, drawn at random, is below the best."""
    trainings, random = Trainings(space, seed), np.random.default_rng(2_000 + seed)
    while len(trainings.below) < count:
        rows = space.sample(10_000, random)
        for row in rows[space.count_macs(rows) <= trainings.budget][: count - len(trainings.below)]:
            trainings.train(row)
    return min(trainings.below)


def by_bayesian_optimization(space: Space, seed: int, count: int) -> float:
    """Give how far the best of so many nets is that KerasTuner's BayesianOptimizationOracle proposes.

    A net over the budget costs it nothing, and it is told 10 points less than 50 % for each doubling of the budget.
    """
    from replay import drive  # with KerasTuner, and so TensorFlow: 0.7 GB

    from factorizenet_tf.tuner.oracle import keras_tuner

    trainings, hyperparameters = Trainings(space, seed), keras_tuner.HyperParameters()
    columns = [str(column) for column in range(len(space._choices))]
    for column, choices in zip(columns, space._choices):
        hyperparameters.Int(column, 0, choices - 1)

    def train(values):
        rows = space.corrected(np.array([[values[column] for column in columns]], np.int16))
        excess = space.count_macs(rows)[0] / trainings.budget
        return trainings.train(rows[0]) if excess <= 1 else (50 - 10 * np.log2(excess)) / 100

    kind = keras_tuner.oracles.BayesianOptimizationOracle
    drive(kind, hyperparameters, seed, train, lambda: len(trainings.below) >= count, max_trials=10**6)
    return min(trainings.below)


def main() -> None:
    """Parse, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", nargs="*", choices=SPACES, default=list(SPACES), help="which")
    parser.add_argument("--seeds", type=int, default=12, help="formulas of each space")
    parser.add_argument("--patience", type=int, default=3, help="of the search")
    parser.add_argument(
        "--bayesian", type=int, default=0, help="formulas to try BayesianOptimization on, some minutes each"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    rows, summary = [], []
    for name in arguments.spaces:
        found = [replay(SPACES[name], seed, arguments.patience) for seed in range(arguments.seeds)]
        for seed, row in enumerate(found):
            is_tried = seed < arguments.bayesian
            below = by_bayesian_optimization(SPACES[name], seed, row["trained"]) if is_tried else None
            row["bayesian_below"] = "" if below is None else round(below, 2)
        rows += [{"space": name} | row for row in found]
        spent = [row["within_0.3_after"] or row["fitting"] for row in found]  # all, where it was never reached
        medians = ("best_trained_below", "answer_below", "random_below")
        summary.append(
            {
                "space": name,
                "nets": f"{SPACES[name].count():,}",
                "trained": int(np.median([row["trained"] for row in found])),
                **{
                    f"within {points}": f"{sum(row[f'within_{points}_after'] != '' for row in found)}/{len(found)}"
                    for points in WITHIN
                },
                "median share": f"{np.median([n / row['fitting'] for n, row in zip(spent, found)]):.2g}",
                **{
                    what.replace("_", " "): round(float(np.median([row[what] for row in found])), 2) for what in medians
                },
                "slowest, CPU s": max(row["slowest_proposal_s"] for row in found),
            }
        )
        write_csv(arguments.out / "replay_macros.csv", rows)
    show_rows(summary, title=f"Points below the best, {arguments.seeds} formulas, noise {NOISE} points, medians")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
