"""Replay the walk and KerasTuner's stock oracles on the table of `exhaustive.py`: what each spends until it has a good net.

    python tuner/replay.py                      # the committed table; minutes, most of them BayesianOptimization's
    python tuner/replay.py --noise measured     # each seed on accuracies as another training might have given them

A net is good enough within 0.3 points of the best of all nets under the budget. Writes replay.csv (a row for each
strategy, budget and seed), replay_summary.csv and replay.png beside the table, and prints the summary.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.plots import replay_costs
from factorizenet_tf.spec import DEFAULT_STAGES
from factorizenet_tf.tuner.exhaustive import read_rows
from factorizenet_tf.tuner.replay import STRATEGIES, noisy, read_table, replay, seed_noise
from factorizenet_tf.tuner.space import macs

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parse, replay, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--table", type=Path, default=RESULTS / "exhaustive.csv", help="of exhaustive.py")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--width", type=int, default=8, help="of the table's nets")
    parser.add_argument("--size", type=int, default=32, help="of the table's images")
    parser.add_argument("--channels", type=int, default=3, help="of the table's images")
    parser.add_argument("--stages", help="of the table's nets, e.g. 3x2,2x2,2x1 (default: the package's)")
    parser.add_argument("--seeds", type=int, default=20, help="replays of each strategy")
    parser.add_argument(
        "--max-macs", type=int, nargs="*", help="budgets (default: a third, half, two thirds of level 0)"
    )
    parser.add_argument("--strategies", nargs="*", choices=STRATEGIES, default=list(STRATEGIES), help="which")
    parser.add_argument("--noise", default="0", help="standard deviation of an accuracy (0..1), or `measured`")
    arguments = parser.parse_args()

    rows = read_rows(arguments.table)
    if not rows:
        parser.error(f"there is no table {arguments.table}; run exhaustive.py first")
    stages = DEFAULT_STAGES
    if arguments.stages:
        stages = tuple(tuple(map(int, stage.split("x"))) for stage in arguments.stages.split(","))
    shape = (arguments.size, arguments.size, arguments.channels)
    table = read_table(rows, fnet.ModelSpec(0, width=arguments.width, input_shape=shape, stages=stages))
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
                world = noisy(table, noise, seed)
                # The walk ends by itself; the others are ended where they have what is wanted.
                one = replay(strategy, world, budget, seed=seed, most=total, stops=not strategy.startswith("walk"))
                found.append((one, world.best(budget)))
                results.append(
                    {
                        "strategy": strategy,
                        "max_macs": budget,
                        "seed": seed,
                        "epochs_to_target": "" if one.reached is None else one.reached,
                        "epochs": one.epochs,
                        "gap_points": round(100 * (world.best(budget) - max(one.best, default=0.0)), 2),
                    }
                )
            drawn[budget, strategy] = [one for one, _ in found]
            summary.append(_summarized(strategy, budget, found, total))
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.out / "replay.csv", results)
    write_csv(arguments.out / "replay_summary.csv", summary)
    replay_costs(drawn, table.epochs, arguments.out / "replay.png")
    show_rows(summary, title=f"Epochs until a net within 0.3 points of the best, {arguments.seeds} seeds")


def _summarized(strategy, budget, found, total):
    """A row over the seeds; a search that never reached the target counts as the whole exhaustive cost."""
    reached = [one.reached for one, _ in found]
    spent = [total if epochs is None else epochs for epochs in reached]
    gaps = [100 * (best - max(one.best, default=0.0)) for one, best in found]
    return {
        "strategy": strategy,
        "max_macs": budget,
        "exhaustive_epochs": total,
        "reached": f"{sum(epochs is not None for epochs in reached)}/{len(found)}",
        "median_epochs": int(np.median(spent)),
        "worst_epochs": max(spent),
        "median_share": round(float(np.median(spent)) / total, 3),
        "worst_share": round(max(spent) / total, 3),
        "median_total": int(np.median([one.epochs for one, _ in found])),
        "median_gap_points": round(float(np.median(gaps)), 2),
        "worst_gap_points": round(max(gaps), 2),
    }


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
