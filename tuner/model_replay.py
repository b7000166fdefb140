"""Tune every net that ResNet-8 may become under a budget, and replay searches over it with and without the table of its layers.

    nice python tuner/model_replay.py --train   # some 30 s a net of one core; killed, the same command goes on
    python tuner/model_replay.py                # replays on the table, some seconds

The nets are those of the zoo's ResNet-8 with middle 1 or 3 by groups of one resolution, within 30 % of its MACs. Each is fitted on 512
images and tuned for two epochs on the first 10,000 training images of CIFAR-10 (JPEG), with ResNet-8 as teacher; int8 by PTQ on
the 5,000 validation images: results/model_nets.csv, whose column `loss` is what `ModelSpace.trend` says of the net before any
training. A search is charged one training a net, and has found a good one within 0.3 points of the best of all under the budget.
Writes results/model_replay.csv: for each strategy and budget the mean number of trainings over seeds, which decide ties, and
the noise of the accuracies that the search sees.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import pandas
from exhaustive import read_rows

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve
from factorizenet_tf.requirement import Requirement
from factorizenet_tf.training.loop import compiled_step, make_step, train_epoch
from factorizenet_tf.tuner.model_space import ModelSpace
from factorizenet_tf.tuner.progressive import Result, Search, propose

RESULTS = Path(__file__).parent / "results"
NETS, LAYERS, REPLAY = (RESULTS / f"model_{name}.csv" for name in ("nets", "layers", "replay"))
MIDDLES, SHARE, IMAGES, WITHIN, NOISE = (1, 3), 0.3, 512, 0.003, 0.003
SHARES = (0.27, 0.3)
RECIPE = fnet.tuning_recipe_for("cifar10", epochs=2)


def main() -> None:
    """Parse, train or replay, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", action="store_true", help="tune the nets that the table lacks")
    parser.add_argument("--seeds", type=int, default=20, help="replays of each strategy")
    arguments = parser.parse_args()
    model = resolve("baseline-resnet8-float").float_model()
    if arguments.train:
        train(model)
    else:
        replay(model, arguments.seeds)


def space_of(model: keras.Model, images: np.ndarray, table: pandas.DataFrame | None) -> ModelSpace:
    """Give the space that the table is of."""
    return ModelSpace(model, images, name="resnet8", middles=MIDDLES, table=table)


def train(model: keras.Model) -> None:
    """Tune what is missing, and write a row each."""
    data = fnet.load_dataset("cifar10")
    part = dataclasses.replace(data, train=fnet.Split(data.train.images[:10_000], data.train.labels[:10_000]))
    images = data.calibration(IMAGES)
    if not LAYERS.exists():
        fnet.factorization_table(model, images[:256], middle=MIDDLES).to_csv(LAYERS, index=False)
    space = space_of(model, images, pandas.read_csv(LAYERS))
    done = {row["name"] for row in read_rows(NETS)}
    rows = space.rows()
    rows = rows[space.count_macs(rows) <= SHARE * fnet.count_macs(model)]
    left = [(net, loss) for net, loss in zip(map(space.net_of, rows), space.trend(rows)) if net.name not in done]
    for number, (net, loss) in enumerate(left, 1):
        start = time.perf_counter()
        keras.utils.set_random_seed(0)
        net_model = space.factorized(net)
        step = compiled_step(make_step(net_model, RECIPE, model))
        for epoch in range(RECIPE.epochs):
            train_epoch(step, part.train, RECIPE, "float", epoch)
        accuracy = fnet.accuracy(fnet.Int8Model(fnet.to_tflite(net_model, calibration=images)), data.validation)
        row = space.columns(net) | {"loss": round(float(loss), 6), "val_int8": round(accuracy, 4)}
        write_csv(NETS, [*read_rows(NETS), row])
        seconds = time.perf_counter() - start
        print(f"{number} of {len(left)}: {net.name} {100 * accuracy:.2f} %, {seconds:.0f} s", flush=True)


def replay(model: keras.Model, seeds: int) -> None:
    """Replay each strategy at each budget, and write the means."""
    accuracies = {row["name"]: float(row["val_int8"]) for row in read_rows(NETS)}
    images = np.zeros((8, *model.input_shape[1:]), np.uint8)  # nothing is fitted
    spaces = {
        name: space_of(model, images, table)
        for name, table in (("with the table", pandas.read_csv(LAYERS)), ("without", None))
    }
    found = []
    for share in SHARES:
        budget = int(share * fnet.count_macs(model))
        space = spaces["with the table"]
        rows = space.rows()[space.count_macs(space.rows()) <= budget]
        nets, loss = [space.net_of(row) for row in rows], space.trend(rows)
        best = max(accuracies[net.name] for net in nets)
        good = {
            net.name for net in nets if round(best - accuracies[net.name], 4) <= WITHIN
        }  # of 5,000 images: four places
        for name in ("with the table", "without", "by the table alone", "at random"):
            spent = []
            for seed in range(seeds):
                random = np.random.default_rng(seed)
                if name in spaces:
                    order = searched(spaces[name], budget, accuracies, seed, random)
                else:
                    chosen = np.argsort(loss) if name == "by the table alone" else random.permutation(len(nets))
                    order = [nets[place].name for place in chosen]
                spent.append(next((n for n, net in enumerate(order, 1) if net in good), len(nets)))
            row = {"max_macs": budget, "nets": len(nets), "good": len(good), "strategy": name}
            found.append(row | {"trainings": np.mean(spent), "most": max(spent)})
    write_csv(REPLAY, found)
    show_rows(found, title="Trainings until a net within 0.3 points of the best")


def searched(space: ModelSpace, budget: int, accuracies: dict, seed: int, random: np.random.Generator) -> list[str]:
    """Give the names of the nets that a search trains, in order."""
    requirement = Requirement(max_macs=budget)
    search = Search(space, requirement, lambda net: requirement.violation({"macs": net.macs}), seed=seed)
    results = {}
    while pending := propose(search, results).pending:
        net = pending[0].spec
        results[net] = Result(accuracies[net.name] + random.normal(0, NOISE))
    return [net.name for net in results]


if __name__ == "__main__":
    main()
