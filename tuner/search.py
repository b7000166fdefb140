"""Search for the best net under a budget, publish the frontier, load the winner back and predict with it.

    python tuner/search.py --dataset digits --size 16 --channels 1 --max-macs 1000000 --out runs/search --publish runs/zoo

On digits it takes less than 10 minutes of 2 cores. On CIFAR-10 under ResNet-8's MACs it takes hours of one core:

    python tuner/search.py --dataset cifar10 --max-macs 12.5M --epochs 4 --qat-epochs 1 --out runs/search-cifar10

Killed, the same command goes on. Writes results.csv, summary.txt and frontier.png into --out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.requirement import amount
from factorizenet_tf.tuner.search import publish_found, search


def main() -> None:
    """Parse, search, publish, predict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dataset", default="digits", help="digits, a TFDS name or a folder of class folders")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--channels", type=int, default=3, help="1 or 3")
    parser.add_argument("--width", type=int, default=16, help="channels of the stem")
    parser.add_argument("--max-macs", type=amount, required=True, help="budget of MACs an image, e.g. 12.5M")
    parser.add_argument("--epochs", type=int, help="float epochs a net (default: the recipe's)")
    parser.add_argument("--qat-epochs", type=int, help="QAT epochs a net (default: the recipe's)")
    parser.add_argument("--max-trials", type=int, help="nets to train at most")
    parser.add_argument("--inherit", action="store_true", help="start nets from the weights of the one before")
    parser.add_argument("--out", type=Path, required=True, help="folder of the search")
    parser.add_argument("--publish", type=Path, help="zoo folder for the frontier and the winner")
    arguments = parser.parse_args()

    data = fnet.load_dataset(arguments.dataset, input_shape=(arguments.size, arguments.size, arguments.channels))
    spec = fnet.ModelSpec(0, width=arguments.width, input_shape=data.image_shape, num_classes=data.num_classes)
    given = {"epochs": arguments.epochs, "qat_epochs": arguments.qat_epochs}
    recipe = fnet.recipe_for(arguments.dataset, **{k: v for k, v in given.items() if v is not None})
    oracle = fnet.tuner.FactorizationOracle(spec, max_macs=arguments.max_macs, max_trials=arguments.max_trials)
    found = search(oracle, data, out=arguments.out, recipe=recipe, inherit=arguments.inherit)
    print(found.summary)
    if found.best is None or arguments.publish is None:
        return
    publish_found(found, arguments.publish)
    print(fnet.zoo.list(precision="int8", zoo_dir=arguments.publish))
    net = fnet.zoo.load(f"{found.best.name}-int8", "tflite", zoo_dir=arguments.publish)
    images, labels = data.test.images[:8], data.test.labels[:8]
    classes = net.predict(images).argmax(1)
    rows = [
        {"image": i, "is": data.class_names[a], "predicted": data.class_names[b]}
        for i, (a, b) in enumerate(zip(labels, classes))
    ]
    show_rows(rows, title=f"{found.best.name}-int8, loaded from {arguments.publish}, on test images")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")
