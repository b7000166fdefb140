"""Train every uniform level of the family and put float, PTQ, QAT and .tflite side by side.

    python tuner/levels.py --out runs/levels

On digits (the default, 16x16x1) it takes some minutes on 2 cores; `--dataset cifar10 --size 32 --channels 3` takes
a night. Writes levels.csv, levels.png and fnet-l<level>-int8.tflite; killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import pandas

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.plots import accuracy_lines, save

PRECISIONS = ("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite")


def main() -> None:
    """Parse, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="digits", help="digits, a TFDS name or a folder of class folders")
    parser.add_argument("--size", type=int, default=16, help="height and width of the images")
    parser.add_argument("--channels", type=int, default=1, help="1 or 3")
    parser.add_argument("--width", type=int, default=16, help="channels of the stem")
    parser.add_argument("--epochs", type=int, help="float epochs (default: the recipe's)")
    parser.add_argument("--qat-epochs", type=int, help="QAT epochs (default: the recipe's)")
    parser.add_argument("--levels", help="which, e.g. 0,2,6 (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()

    given = {"epochs": arguments.epochs, "qat_epochs": arguments.qat_epochs}
    recipe = fnet.recipe_for(arguments.dataset, **{k: v for k, v in given.items() if v is not None})
    if not recipe.qat_epochs:
        parser.error("the comparison needs QAT: give --qat-epochs of at least 1")
    data = fnet.load_dataset(arguments.dataset, input_shape=(arguments.size, arguments.size, arguments.channels))
    options = {"width": arguments.width, "input_shape": data.image_shape, "num_classes": data.num_classes}
    last = fnet.max_level(fnet.ModelSpec(0, **options))
    levels = range(last + 1) if arguments.levels is None else [int(level) for level in arguments.levels.split(",")]
    rows = []
    for level in levels:
        spec = fnet.ModelSpec(level, **options)
        run = fnet.train(spec, data, out=arguments.out / spec.name, recipe=recipe)
        shutil.copyfile(run.folder / "model.tflite", arguments.out / f"{spec.name}-int8.tflite")
        cost = {key: run.metrics[key] for key in ("macs", "params", "size_bytes")}
        accuracies = {precision: run.metrics["accuracy"]["test"][precision] for precision in PRECISIONS}
        rows.append({"name": spec.name, "level": level, **cost, **accuracies})

    write_csv(arguments.out / "levels.csv", rows)
    title = f"{data.title}, width {arguments.width}: test accuracy on {len(data.test):,} images"
    drawn = [
        {
            "net": f"l{row['level']}",
            "precision": p.replace("_", " "),
            "macs": row["macs"] / 1e6,
            "percent": 100 * row[p],
        }
        for p in PRECISIONS
        for row in rows
    ]
    save(accuracy_lines(pandas.DataFrame(drawn), "test accuracy, %", title), arguments.out / "levels.png")
    show_rows([row | {p: f"{100 * row[p]:.2f} %" for p in PRECISIONS} for row in rows], title=title)
    print(f"{arguments.out}: levels.csv, levels.png and a .tflite for each level")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
