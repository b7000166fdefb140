"""Does a net that starts from another's trained weights get further in as many epochs? Pairs of nets as the walk makes them.

    python tuner/inheritance.py --epochs 5

Trains each parent, then each child from random weights and from its parent's, all for the same number of epochs, on a
part of CIFAR-10 as `exhaustive.py` does. Writes results/inheritance.csv; killed, it goes on with the pairs it has not yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from exhaustive import curve, fresh, part_of, read_rows

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.models.inherit import inherit

RESULTS = Path(__file__).parent / "results" / "inheritance.csv"
STAGES = ((3, 2), (2, 2), (2, 1))
# parent: children. A stage finer, a stage coarser, a trade, and one that leaves level 0.
PAIRS = {
    (2, 2, 2): ((2, 2, 4), (1, 2, 2), (1, 3, 2), (3, 3, 3)),
    (0, 2, 2): ((1, 2, 2), (0, 1, 3)),
}


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="cifar10", help="digits, a TFDS name or a folder of class folders")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3")
    parser.add_argument("--width", type=int, default=8, help="channels of the stem")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--validation", type=int, default=5_000, help="validation images at most")
    parser.add_argument("--epochs", type=int, default=5, help="of each training")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="peak")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")
    parser.add_argument("--only", type=int, help="stop after so many pairs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    arguments = parser.parse_args()

    shape = (arguments.size, arguments.size, arguments.channels)
    data = part_of(fnet.load_dataset(arguments.dataset, input_shape=shape), arguments.images, arguments.validation)
    options = {"epochs": arguments.epochs, "batch_size": 64, "warmup_epochs": 1.0, "seed": arguments.seed}
    recipe = fnet.recipe_for(arguments.dataset, learning_rate=arguments.learning_rate, **options)

    def net(levels):
        return fnet.ModelSpec(
            levels, width=arguments.width, input_shape=shape, num_classes=data.num_classes, stages=STAGES
        )

    rows = read_rows(arguments.out)
    done, left = {(row["parent"], row["child"], row["seed"]) for row in rows}, arguments.only
    for levels, children in PAIRS.items():
        parent = net(levels)
        todo = [c for c in map(net, children) if (parent.name, c.name, str(arguments.seed)) not in done][:left]
        if not todo:
            continue
        trained = fresh(parent, arguments.seed)
        before = _accuracies(trained, data, recipe)
        weights = trained.get_weights()
        for child in todo:
            from_random = _accuracies(fresh(child, arguments.seed), data, recipe)
            source = fresh(parent, arguments.seed)
            source.set_weights(weights)
            inherited = _accuracies(inherit(source, parent, child, seed=arguments.seed), data, recipe)
            rows.append(
                {
                    "parent": parent.name,
                    "child": child.name,
                    "seed": str(arguments.seed),
                    "epochs": str(arguments.epochs),
                    "parent_accuracy": f"{before[-1]:.4f}",
                    "random_accuracy": f"{from_random[-1]:.4f}",
                    "inherited_accuracy": f"{inherited[-1]:.4f}",
                    "random_first_epoch": f"{from_random[0]:.4f}",
                    "inherited_first_epoch": f"{inherited[0]:.4f}",
                }
            )
            write_csv(arguments.out, rows)
        left = None if left is None else left - len(todo)
    show_rows(rows, title=f"{data.title}, {len(data.train):,} images, {arguments.epochs} epochs: validation accuracy")


def _accuracies(model, data, recipe):
    return [accuracy for accuracy, _ in curve(model, data, recipe)]


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
