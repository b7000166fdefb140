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
from factorizenet_tf.spec import DEFAULT_STAGES, level_text
from factorizenet_tf.training.loop import DivergedError, batchnorm_estimator, compiled_step, make_step, train_epoch
from factorizenet_tf.tuner.space import Space, macs

RESULTS = Path(__file__).parent / "results" / "exhaustive.csv"
LOCK_SECONDS = 60  # a row takes milliseconds


def main() -> None:
    """Parse, train what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="cifar10", help="digits, a TFDS name or a folder of class folders")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3")
    parser.add_argument("--width", type=int, default=8, help="channels of the stem")
    parser.add_argument("--stages", help="blocks x stride of each, e.g. 3x2,2x2,2x1 (default: the package's)")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--validation", type=int, default=5_000, help="validation images at most")
    parser.add_argument("--epochs", type=int, default=12, help="of each net")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="peak")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")
    parser.add_argument("--every", type=int, default=1, help="train each so many-th net only")
    parser.add_argument("--only", type=int, help="stop after so many nets")
    parser.add_argument("--part", default="0/1", help="which of how many processes this is, from 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    arguments = parser.parse_args()

    part, parts = map(int, arguments.part.split("/"))
    data = fnet.load_dataset(arguments.dataset, input_shape=(arguments.size, arguments.size, arguments.channels))
    data = part_of(data, arguments.images, arguments.validation)
    options = {"input_shape": data.image_shape, "num_classes": data.num_classes}
    spec = fnet.ModelSpec(0, width=arguments.width, stages=parse_stages(arguments.stages), **options)
    recipe = fnet.recipe_for(
        arguments.dataset,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_epochs=1.0,
        seed=arguments.seed,
    )
    nets = sorted(Space(spec, (spec.width,)).nets(), key=lambda net: net.name)[:: arguments.every]
    left = missing(nets, arguments.out, arguments.seed, part, parts)[: arguments.only]
    print(
        f"{len(nets)} nets, {len(left)} to train here: {data.title}, {len(data.train):,} images, {len(data.validation):,} validation"
    )
    begun = time.perf_counter()
    for number, net in enumerate(left, 1):
        start = time.perf_counter()
        epochs = list(curve(fresh(net, recipe.seed), data, recipe))
        add_row(arguments.out, net, recipe, epochs)
        now = time.perf_counter()
        first, *others = (seconds for _, seconds in epochs)
        rest = (now - begun) / number * (len(left) - number)
        print(
            f"{number}/{len(left)} {net.name}: {100 * epochs[-1][0]:.2f} %, {now - start:.0f} s, "
            f"epochs {first:.1f} s, then {sum(others) / max(1, len(others)):.1f} s; {rest / 3600:.1f} h left",
            flush=True,
        )


def parse_stages(text: str | None) -> tuple:
    """Read blocks x stride of each stage, e.g. 3x2,2x2,2x1; None gives the package's."""
    return tuple(tuple(map(int, stage.split("x"))) for stage in text.split(",")) if text else DEFAULT_STAGES


def fresh(spec: fnet.ModelSpec, seed: int) -> keras.Model:
    """Build a net with random weights of a seed, and free what was built before."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    return build(spec)


def curve(model: keras.Model, dataset: fnet.Dataset, recipe: fnet.Recipe) -> Iterator[tuple[float, float]]:
    """Train a model in float as `train` does, without files, and yield (validation accuracy 0..1, seconds) of each epoch.

    Raises:
        DivergedError: the loss is no longer finite.
    """
    run = compiled_step(make_step(model, recipe))
    estimate_batchnorm = batchnorm_estimator(model, dataset.train, recipe)
    for epoch in range(recipe.epochs):
        start = time.perf_counter()
        train_epoch(run, dataset.train, recipe, "float", epoch)
        estimate_batchnorm()
        yield fnet.accuracy(model, dataset.validation), time.perf_counter() - start


def part_of(dataset: fnet.Dataset, images: int, validation: int) -> fnet.Dataset:
    """Cut a data set to its first so many training and validation images (their order was shuffled once)."""

    def first(split, count):
        return fnet.Split(split.images[:count], split.labels[:count])

    return dataclasses.replace(
        dataset, train=first(dataset.train, images), validation=first(dataset.validation, validation)
    )


def missing(nets: list[fnet.ModelSpec], path: Path, seed: int, part: int, parts: int) -> list[fnet.ModelSpec]:
    """Give this process's part of the nets, without those that the table has with this seed."""
    done = {(row["name"], int(row["seed"])) for row in read_rows(path)}
    return [net for net in nets[part::parts] if (net.name, seed) not in done]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a table; none where there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def add_row(path: Path, spec: fnet.ModelSpec, recipe: fnet.Recipe, epochs: list[tuple[float, float]]) -> None:
    """Put a net's row into the table, whole or not at all; several processes may do so.

    Raises:
        OSError: the table cannot be written.
        ValueError: it has another number of epochs.
    """
    row = {
        "name": spec.name,
        "level": level_text(spec.levels),
        "seed": str(recipe.seed),
        "macs": str(macs(spec)),
        "seconds": f"{sum(seconds for _, seconds in epochs):.1f}",
        **{f"epoch_{number}": f"{accuracy:.4f}" for number, (accuracy, _) in enumerate(epochs, 1)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock"), LOCK_SECONDS):
        rows = [r for r in read_rows(path) if (r["name"], r["seed"]) != (row["name"], row["seed"])]
        if rows and rows[0].keys() != row.keys():
            raise ValueError(f"{path} has rows of {len(rows[0]) - 5} epochs, not {len(epochs)}; give another file")
        write_csv(path, sorted([*rows, row], key=lambda r: (int(r["seed"]), -int(r["macs"]), r["name"])))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, DivergedError) as error:
        sys.exit(f"error: {error}")
