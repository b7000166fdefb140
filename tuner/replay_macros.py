"""Replay searches over macro-architectures on formulas, which tell what no table of trainings can: how far the best is.

    python tuner/replay_macros.py --seeds 12        # minutes; --spaces to choose

A formula gives the accuracy of each net of a space: an effect of its MACs, of the level, the blocks and the channels of each
stage and of the macro-architecture, drawn for each seed, and interactions of any two choices in a stage and of equal choices in
two stages that follow each other (together INTERACTIONS points). A training adds NOISE, as measured between seeds (results/README.md). The best true accuracy within the budget is counted
out where that is possible, and climbed for with the formula at hand where it is not. Writes replay_macros.csv: for each
space and seed, how many nets fit, how many the search trained, after how many of them it had one within 0.3 points of
the best, by how much the best it trained and the one it names are below, in true accuracy, and its slowest proposal. Expected: a line
a space on stdout.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.requirement import Requirement
from factorizenet_tf.tuner.progressive import Result, Search, propose
from factorizenet_tf.tuner.space import Space, macs

RESULTS = Path(__file__).parent / "results"
NOISE, INTERACTIONS, WITHIN = 1.1, 0.7, 0.3  # points
COUNTED = 200_000  # nets at most that are all looked at for the best
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
    counted = space.count() <= COUNTED
    rows = space.rows() if counted else space.sample(COUNTED, random)
    fitting = rows[space.count_macs(rows) <= budget]
    number, best = round(space.count() * len(fitting) / len(rows)), -np.inf
    while formula(fitting).max() > best + 1e-9:
        best = formula(fitting).max()
        top = fitting[np.argsort(-formula(fitting))[:60]]
        altered = [space.altered(np.repeat(top, 100, axis=0), changes, random) for changes in (2, 4)]
        fitting = np.concatenate([top, space.neighbours(top), *altered])
        fitting = fitting[space.count_macs(fitting) <= budget]
    return float(best), number


def replay(space: Space, seed: int, patience: int = 3) -> dict[str, object]:
    """Search a space on a formula of a seed; gives a row of the table."""
    formula, random = Formula(space, seed), np.random.default_rng(1_000 + seed)
    budget = round(macs(space.smallest()) * BUDGETS[seed % len(BUDGETS)])
    best, fitting = best_within(formula, space, budget, random)
    requirement = Requirement(max_macs=budget)
    search = Search(space, requirement, lambda net: requirement.violation({"macs": macs(net)}), patience)
    results, below, slowest, reached = {}, {}, 0.0, ""
    while True:
        start = time.thread_time()
        state = propose(search, results)
        slowest = max(slowest, time.thread_time() - start)
        if not state.pending:
            break
        net = state.pending[0].spec
        accuracy = float(formula(np.array([space.row_of(net)]))[0])
        results[net], below[net] = Result((accuracy + random.normal(0, NOISE)) / 100), best - accuracy
        if reached == "" and below[net] <= WITHIN:
            reached = len(results)
    return {
        "nets": space.count(),
        "seed": seed,
        "max_macs": budget,
        "fitting": fitting,
        "trained": len(results),
        "reached_after": reached,
        "best_trained_below": round(min(below.values()), 2),
        "answer_below": round(below[state.best], 2),
        "slowest_proposal_s": round(slowest, 2),
    }


def main() -> None:
    """Parse, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", nargs="*", choices=SPACES, default=list(SPACES), help="which")
    parser.add_argument("--seeds", type=int, default=12, help="formulas of each space")
    parser.add_argument("--patience", type=int, default=3, help="of the search")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    rows, summary = [], []
    for name in arguments.spaces:
        found = [replay(SPACES[name], seed, arguments.patience) for seed in range(arguments.seeds)]
        rows += [{"space": name} | row for row in found]
        spent = [row["reached_after"] or row["fitting"] for row in found]  # all, where it was never reached
        summary.append(
            {
                "space": name,
                "nets": f"{SPACES[name].count():,}",
                "trained": int(np.median([row["trained"] for row in found])),
                "reached": f"{sum(row['reached_after'] != '' for row in found)}/{len(found)}",
                "median share": f"{np.median([n / row['fitting'] for n, row in zip(spent, found)]):.2g}",
                "best trained below": round(float(np.median([row["best_trained_below"] for row in found])), 2),
                "answer below": round(float(np.median([row["answer_below"] for row in found])), 2),
                "slowest, CPU s": max(row["slowest_proposal_s"] for row in found),
            }
        )
        write_csv(arguments.out / "replay_macros.csv", rows)
    show_rows(summary, title=f"Within {WITHIN} points of the best, {arguments.seeds} formulas, noise {NOISE} points")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
