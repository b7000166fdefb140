"""Short trainings that settle macro-architecture and recipe before the long ones; validation accuracy only.

    python tuner/short_runs.py --out runs/short [--only NAME ...]

15 float epochs on CIFAR-10 each where nothing else is said, 8 to 30 minutes of one core. Trains what is not there yet, killed it goes on, and
writes every finished run into tuner/results/short_runs.csv. Rows of that file whose variant is not in the table below
are of variants that left the code; their `note` says what they were, results/README.md what they showed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from exhaustive import read_rows

import factorizenet_tf as fnet
from factorizenet_tf.files import write_csv
from factorizenet_tf.spec import level_text

RESULTS = Path(__file__).parent / "results" / "short_runs.csv"

# name: (spec, changes to the recipe, note)
VARIANTS = {
    "resnet8": (fnet.baselines.ResNet8(), {}, "the rival"),
    "resnet8-cutout": (fnet.baselines.ResNet8(), {"cutout": 0.25}, "the rival"),
    "l2": (fnet.ModelSpec(2), {}, "no sum: kept"),
    "l6": (fnet.ModelSpec(6), {}, "no sum: kept"),
    "l6-x1.5": (fnet.ModelSpec(6, width=24), {}, "no sum: kept"),
    "l6-x1.5-cutout": (fnet.ModelSpec(6, width=24), {"cutout": 0.25}, "no sum: kept"),
    "mixed": (fnet.ModelSpec((0, 6, 6), macro="2x2,4x2r,2x2c96"), {}, "regular, then depthwise with sums"),
    "mixed-plain": (fnet.ModelSpec((0, 6, 6), macro="2x2,4x2,2x2c96"), {}, "regular, then depthwise without sums"),
    "mixed-grouped": (fnet.ModelSpec((2, 6, 6), macro="3x2c48,4x2r,2x2c96"), {}, "grouped, then depthwise with sums"),
    "mixed-deep": (fnet.ModelSpec((0, 6, 6), macro="2x2r,6x2r,2x2c96"), {}, "regular, then depthwise with sums"),
    "half": (fnet.ModelSpec((0, 6, 5), macro="1x2,4x2r,2x2c112"), {}, "for half of ResNet-8's time"),
    "third": (fnet.ModelSpec((5, 4), macro="4x2r,4x2c40r"), {}, "for a third of ResNet-8's bytes"),
    "third-high": (fnet.ModelSpec((4, 5, 5), macro="2x1c16r,5x2c32r,2x2c48"), {}, "the same, two blocks at 32x32"),
    "third-wide": (fnet.ModelSpec(6, macro="1x1c32,3x2c40r,2x2c64r"), {}, "the same, one block at 32x32"),
    "deep": (
        fnet.ModelSpec((6, 7, 7), width=24, macro="3x2c64r,5x2c128r,3x2c192r"),
        {},
        "eleven depthwise blocks with sums, for 12.5 M MACs",
    ),
    "deep-narrow": (fnet.ModelSpec((4, 5), macro="5x2c40r,5x2c80r"), {}, "the same for all of ResNet-8's costs"),
    "deep-narrow-three": (fnet.ModelSpec((4, 6, 6), macro="6x2c40r,3x2c64r,2x2c96r"), {}, "the same in three stages"),
    "within": (
        fnet.ModelSpec((5, 5, 6), macro="4x2c48,4x2c72r,3x2c96r"),
        {},
        "for all of ResNet-8's costs, its time, too",
    ),
    "within-wide": (fnet.ModelSpec(5, macro="3x2c48,4x2c80r,2x2c112r"), {}, "the same, fewer and wider blocks"),
    "within-deep": (
        fnet.ModelSpec((4, 6, 6), macro="4x2c40,4x2c64r,4x2c96r"),
        {},
        "the same, more and narrower blocks",
    ),
    "half-third": (
        fnet.ModelSpec((4, 4, 6), macro="3x2c24,2x2c40r,2x2c64r"),
        {},
        "for half of ResNet-8's time and a third of its bytes",
    ),
    "half-deep": (fnet.ModelSpec((5, 6, 6), macro="2x2c32,4x2c64r,2x2c96r"), {}, "for about half of ResNet-8's time"),
    "l6-30": (fnet.ModelSpec(6), {"epochs": 30}, "recipe tries of 30 epochs start here"),
    "l6-30-sharp": (fnet.ModelSpec(6), {"epochs": 30, "label_smoothing": 0}, "no label smoothing"),
    "l6-30-batch64": (fnet.ModelSpec(6), {"epochs": 30, "batch_size": 64, "learning_rate": 0.1}, "smaller steps"),
}


def main() -> None:
    """Train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="which variants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation, order and augmentation")
    arguments = parser.parse_args()
    data = fnet.load_dataset("cifar10")
    for name in arguments.only or VARIANTS:
        spec, changes, note = VARIANTS[name]
        recipe = fnet.Recipe(**{"epochs": 15, "qat_epochs": 0, "seed": arguments.seed, **changes})
        folder = arguments.out.expanduser() / f"{name}-s{arguments.seed}"
        run = fnet.train(spec, data, out=folder, recipe=recipe)
        record(name, spec, changes, arguments.seed, run, note)


def record(name, spec, changes, seed, run, note) -> None:
    """Put a run's row into the table, in the place of an older one of the same name and seed."""
    row = {
        "name": name,
        "level": level_text(spec.levels) if isinstance(spec, fnet.ModelSpec) else "",
        "width": getattr(spec, "width", ""),
        "stages": ",".join(map(str, getattr(spec, "stages", ()))),
        "recipe": json.dumps(changes) if changes else "",
        "seed": str(seed),
        "epochs": str(run.recipe.epochs),
        "macs": str(run.metrics["macs"]),
        "val_accuracy": f"{run.metrics['accuracy']['validation']['float']:.4f}",
        "note": note,
    }
    rows = [old for old in read_rows(RESULTS) if (old["name"], old["seed"]) != (row["name"], row["seed"])] + [row]
    write_csv(RESULTS, rows)


if __name__ == "__main__":
    main()
