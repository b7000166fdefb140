"""Does a net that starts from another's trained weights get further in as many epochs? Pairs of nets as the walk makes them.

    python tuner/inheritance.py --epochs 5

Trains each parent, then each child from random weights and from its parent's, all for the same number of epochs, on a
part of CIFAR-10 as `exhaustive.py` does; where a stage leaves level 0 or comes to it, once more with that stage started anew in
the place of fitted. Some 1.4 minutes of one core a training of 12 epochs. Writes results/inheritance.csv; killed, it goes on with
the pairs it has not yet.
"""

from __future__ import annotations

import sys
from pathlib import Path

from exhaustive import curve, fresh, read_rows, training_parser, training_setting

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.models.inherit import inherit

RESULTS = Path(__file__).parent / "results" / "inheritance.csv"
STAGES = ((3, 2), (2, 2), (2, 1))
# parent: children. A stage finer, a stage coarser, a trade, and some that leave level 0 or come to it.
PAIRS = {
    (2, 2, 2): ((2, 2, 4), (1, 2, 2), (1, 3, 2), (3, 3, 3), (0, 2, 2)),
    (0, 2, 2): ((1, 2, 2), (3, 2, 2), (0, 1, 3)),
    (0, 0, 0): ((2, 2, 2), (4, 5, 5)),
}


def main() -> None:
    """Parse, train, write."""
    arguments = training_parser(__doc__.partition("\n")[0], epochs=5, out=RESULTS).parse_args()
    data, recipe, options = training_setting(arguments)

    def net(levels):
        return fnet.ModelSpec(levels, stages=STAGES, **options)

    def accuracies(model):
        return list(curve(model, data, recipe))

    rows = {
        (row["parent"], row["child"], row["seed"]): {**row, "anew_accuracy": row.get("anew_accuracy", "")}
        for row in read_rows(arguments.out)
    }
    left = arguments.only
    for levels, children in PAIRS.items():
        parent = net(levels)
        todo = []
        for child in map(net, children):
            key = parent.name, child.name, str(arguments.seed)
            leaves = any((before == 0) != (after == 0) for before, after in zip(levels, child.levels))
            if key not in rows or (leaves and not rows[key]["anew_accuracy"]):
                todo.append((key, child, leaves))
        todo = todo[:left]
        if not todo:
            continue
        trained = fresh(parent, arguments.seed)
        before = accuracies(trained)
        weights = trained.get_weights()
        for key, child, leaves in todo:
            from_random = accuracies(fresh(child, arguments.seed))
            source = fresh(parent, arguments.seed)
            source.set_weights(weights)
            inherited, anew = (
                accuracies(inherit(source, parent, child, seed=arguments.seed, calibration=images)) if wanted else [""]
                for images, wanted in ((data.calibration(512), True), (None, leaves))
            )
            rows[key] = {
                "parent": parent.name,
                "child": child.name,
                "seed": str(arguments.seed),
                "epochs": str(arguments.epochs),
                "parent_accuracy": f"{before[-1]:.4f}",
                "random_accuracy": f"{from_random[-1]:.4f}",
                "inherited_accuracy": f"{inherited[-1]:.4f}",
                "random_first_epoch": f"{from_random[0]:.4f}",
                "inherited_first_epoch": f"{inherited[0]:.4f}",
                "anew_accuracy": f"{anew[-1]:.4f}" if leaves else "",
            }
            write_csv(arguments.out, list(rows.values()))
        left = None if left is None else left - len(todo)
    show_rows(
        list(rows.values()),
        title=f"{data.title}, {len(data.train):,} images, {arguments.epochs} epochs: validation accuracy",
    )


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
