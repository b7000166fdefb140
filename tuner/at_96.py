"""Macro-architectures on images of 96x96 pixels, each level against MobileNetV1-0.25, trained alike.

    python tuner/at_96.py --dataset FOLDER --out runs/at-96

FOLDER: sign language digits (github.com/ardamavi/Sign-Language-Digits-Dataset, 2,062 photographs, Apache-2.0). 12 + 1 epochs,
three seeds, a minute or two a training on one core; killed it goes on. Writes tuner/results/at_96.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import factorizenet_tf as fnet
from factorizenet_tf.files import write_csv
from factorizenet_tf.tflite.micro import arena_bytes

RESULTS = Path(__file__).parent / "results" / "at_96.csv"
SHAPE = (96, 96, 3)
# macro-architecture, level (None: the last one, depthwise separable), width
VARIANTS = [
    ("mobilenetv1", None, 8),
    ("early", 2, 16),
    ("early", None, 16),
]


def main() -> None:
    """Train what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", type=Path, required=True, help="folder of the classes' folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3, help="of initialisation, order and augmentation")
    arguments = parser.parse_args()
    data = fnet.load_dataset(str(arguments.dataset), input_shape=SHAPE)
    rows = []
    for macro, level, width in VARIANTS:
        options = {"width": width, "macro": macro, "input_shape": SHAPE, "num_classes": data.num_classes}
        spec = fnet.ModelSpec(fnet.max_level(fnet.ModelSpec(0, **options)) if level is None else level, **options)
        for seed in range(arguments.seeds):
            recipe = fnet.recipe_for(str(arguments.dataset), epochs=12, qat_epochs=1, batch_size=32, seed=seed)
            run = fnet.train(spec, data, out=arguments.out.expanduser() / f"{spec.name}-s{seed}", recipe=recipe)
            accuracy = run.metrics["accuracy"]
            rows.append(
                {
                    "name": spec.name,
                    "seed": seed,
                    "macs": run.metrics["macs"],
                    "params": run.metrics["params"],
                    "size_bytes": run.metrics["size_bytes"],
                    "ram_bytes": arena_bytes((run.folder / "model.tflite").read_bytes()),
                    "validation_float": accuracy["validation"]["float"],
                    "test_float": accuracy["test"]["float"],
                    "test_int8": accuracy["test"]["tflite"],
                }
            )
            write_csv(RESULTS, rows)


if __name__ == "__main__":
    main()
