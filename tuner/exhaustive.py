"""Train every distinct net at one width on a part of CIFAR-10, for the table that `replay.py` replays searches on.

    nice python tuner/exhaustive.py --part 0/2 &
    nice python tuner/exhaustive.py --part 1/2 &
    python tuner/exhaustive.py --seed 1 --every 6        # a part of them again, for the noise

Float trainings on the first 10,000 training images; accuracy on 5,000 validation images after each epoch. Killed, the
same command goes on with the nets that the table has not yet; two processes with a part each share one table. Each
line says how long the rest will take. `--only` and `--epochs` are for trying it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import factorizenet_tf as fnet
from factorizenet_tf.spec import DEFAULT_STAGES
from factorizenet_tf.tuner.exhaustive import add_row, curve, fresh, missing, part_of
from factorizenet_tf.tuner.space import Space

RESULTS = Path(__file__).parent / "results" / "exhaustive.csv"


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
    stages = DEFAULT_STAGES
    if arguments.stages:
        stages = tuple(tuple(map(int, stage.split("x"))) for stage in arguments.stages.split(","))
    spec = fnet.ModelSpec(
        0, width=arguments.width, input_shape=data.image_shape, num_classes=data.num_classes, stages=stages
    )
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


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, fnet.NanLossError) as error:
        sys.exit(f"error: {error}")
