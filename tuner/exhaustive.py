"""Train every distinct net at one width on a part of CIFAR-10, for the table that `replay.py` replays searches on.

    nice python tuner/exhaustive.py --part 0/2 &
    nice python tuner/exhaustive.py --part 1/2 &
    python tuner/exhaustive.py --seed 1 --every 6        # a part of them again, for the noise

Float trainings on the first 10,000 training images; accuracy on 5,000 validation images after each epoch. Killed, the
same command goes on with the nets that the table has not yet; two processes with a part each share one table. Each
line says how long the rest will take. `--only` and `--epochs` are for trying it. results/exhaustive.csv was made with
BatchNorm's moving averages; today, as in `train`, its statistics are estimated anew before each validation.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.files import write_csv
from factorizenet_tf.models.build import build
from factorizenet_tf.spec import level_text
from factorizenet_tf.training.loop import DivergedError, batchnorm_estimator, compiled_step, make_step, train_epoch
from factorizenet_tf.tuner.space import Space, macs

RESULTS = Path(__file__).parent / "results" / "exhaustive.csv"
LOCK_SECONDS = 60  # a row takes milliseconds


def main() -> None:
    """Parse, train what is missing, write."""
    parser = training_parser(__doc__.partition("\n")[0], epochs=12, out=RESULTS)
    parser.add_argument("--macro", "--stages", help="e.g. 3x2,2x2,2x1 (default: the package's)")
    parser.add_argument("--every", type=int, default=1, help="train each so many-th net only")
    parser.add_argument("--part", default="0/1", help="which of how many processes this is, from 0")
    arguments = parser.parse_args()

    part, parts = map(int, arguments.part.split("/"))
    data, recipe, options = training_setting(arguments)
    spec = fnet.ModelSpec(0, macro=arguments.macro, **options)
    nets = sorted(Space(spec, (spec.width,)).nets(), key=lambda net: net.name)[:: arguments.every]
    left = missing(nets, arguments.out, arguments.seed, part, parts)[: arguments.only]
    sizes = f"{len(data.train):,} images, {len(data.validation):,} validation"
    print(f"{len(nets)} nets, {len(left)} to train here: {data.title}, {sizes}")
    begun = time.perf_counter()
    for number, net in enumerate(left, 1):
        start = time.perf_counter()
        accuracies = list(curve(fresh(net, recipe.seed), data, recipe))
        now = time.perf_counter()
        add_row(arguments.out, net, recipe.seed, accuracies, now - start)
        hours = (now - begun) / number * (len(left) - number) / 3600
        done = f"{number}/{len(left)} {net.name}: {100 * accuracies[-1]:.2f} %, {now - start:.0f} s"
        print(f"{done}; {hours:.1f} h left", flush=True)


def training_parser(description: str, *, epochs: int, out: Path) -> argparse.ArgumentParser:
    """Make a parser with the options of short trainings on a part of a data set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dataset", default="cifar10", help="digits, a TFDS name or a folder of class folders")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3")
    parser.add_argument("--width", type=int, default=8, help="channels of the stem")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--validation", type=int, default=5_000, help="validation images at most")
    parser.add_argument("--epochs", type=int, default=epochs, help="of each training")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="peak")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")
    parser.add_argument("--only", type=int, help="stop after so many")
    parser.add_argument("--out", type=Path, default=out, help="the table")
    return parser


def training_setting(arguments: argparse.Namespace) -> tuple[fnet.Dataset, fnet.Recipe, dict]:
    """Load the data's part and give it with the recipe, and the options of a `ModelSpec` for it."""
    shape = (arguments.size, arguments.size, arguments.channels)
    data = fnet.load_dataset(arguments.dataset, input_shape=shape)
    parts = {"train": arguments.images, "validation": arguments.validation}  # their order was shuffled once
    for name, count in parts.items():
        split = getattr(data, name)
        data = dataclasses.replace(data, **{name: fnet.Split(split.images[:count], split.labels[:count])})
    given = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "learning_rate", "seed")}
    recipe = fnet.recipe_for(arguments.dataset, warmup_epochs=1.0, **given)
    return data, recipe, {"width": arguments.width, "input_shape": shape, "num_classes": data.num_classes}


def fresh(spec: fnet.ModelSpec, seed: int) -> keras.Model:
    """Build a net with random weights of a seed, and free what was built before."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    return build(spec)


def curve(model: keras.Model, dataset: fnet.Dataset, recipe: fnet.Recipe) -> Iterator[float]:
    """Train a model in float as `train` does, without files, and yield the validation accuracy (0..1) of each epoch.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    run = compiled_step(make_step(model, recipe))
    estimate_batchnorm = batchnorm_estimator(model, dataset.train, recipe)
    for epoch in range(recipe.epochs):
        train_epoch(run, dataset.train, recipe, "float", epoch)
        estimate_batchnorm()
        yield fnet.accuracy(model, dataset.validation)


def missing(nets: list[fnet.ModelSpec], path: Path, seed: int, part: int, parts: int) -> list[fnet.ModelSpec]:
    """Give this process's part of the nets, without those that the table has with this seed."""
    done = {(row["name"], int(row["seed"])) for row in read_rows(path)}
    return [net for net in nets[part::parts] if (net.name, seed) not in done]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table; none where there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def add_row(path: Path, spec: fnet.ModelSpec, seed: int, accuracies: list[float], seconds: float) -> None:
    """Put a net's row into the table, whole or not at all; several processes may do so.

    Raises:
        OSError: the table cannot be written.
        ValueError: it has another number of epochs.
    """
    row = {
        "name": spec.name,
        "level": level_text(spec.levels),
        "seed": str(seed),
        "macs": str(macs(spec)),
        "seconds": f"{seconds:.1f}",
        **{f"epoch_{number}": f"{accuracy:.4f}" for number, accuracy in enumerate(accuracies, 1)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), LOCK_SECONDS):
        rows = [r for r in read_rows(path) if (r["name"], r["seed"]) != (row["name"], row["seed"])]
        if rows and rows[0].keys() != row.keys():
            raise ValueError(f"{path} has rows of {len(rows[0]) - 5} epochs, not {len(accuracies)}; give another file")
        write_csv(path, sorted([*rows, row], key=lambda r: (int(r["seed"]), -int(r["macs"]), r["name"])))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, DivergedError) as error:
        sys.exit(f"error: {error}")
