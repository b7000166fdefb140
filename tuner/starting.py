"""What starting from a trained net is worth on small sets of 64x64 pixels: accuracy by epochs, against the same net from nothing.

    python tuner/starting.py --start tiny_imagenet=NET --start cifar10=fnet-l2-float --signs FOLDER --fashion FOLDER \
        --out runs/starting

NET: a float net, by name or run's folder. Sets: sign language digits (--signs FOLDER of
github.com/ardamavi/Sign-Language-Digits-Dataset, 2,062 images), GTSRB at 10 images a class (FACTORIZENET_GTSRB), Fashion-MNIST
at 100 a class (--fashion FOLDER of its four .gz files, or TFDS's); those that are not here are named and left out. Three seeds
each, a minute or two a training on one core; killed it goes on. Writes tuner/results/starting.csv.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import named_source, resolve

RESULTS = Path(__file__).parent / "results" / "starting.csv"
SHAPE = (64, 64, 3)
CLOTHES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def main(given: list[str] | None = None) -> None:
    """Train what is missing, write the table, print its means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--start", action="append", required=True, metavar="WHAT=NET", help="a net to start from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--signs", type=Path, help="folder of sign language digits")
    parser.add_argument("--fashion", type=Path, help="folder of Fashion-MNIST's four .gz files")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 20], help="of the float phase; one of QAT follows")
    parser.add_argument("--freeze", type=int, nargs="+", default=[0], help="first stages that keep their weights")
    parser.add_argument("--seeds", type=int, default=3, help="of initialisation, order and augmentation")
    arguments = parser.parse_args(given)
    starts = dict(map(named_source, arguments.start))
    rows = []
    for name in arguments.sets:
        try:
            data = SETS[name](arguments)
        except (OSError, ValueError) as error:
            print(f"{name} left out: {error}")
            continue
        for what, net in starts.items():
            spec = resolve(net).with_precision("float").spec
            spec = dataclasses.replace(spec, input_shape=SHAPE, num_classes=data.num_classes)
            ways = [("nothing", 0), *((what, freeze) for freeze in arguments.freeze)]
            for epochs, (start, freeze), seed in (
                (epochs, way, seed) for epochs in arguments.epochs for way in ways for seed in range(arguments.seeds)
            ):
                recipe = fnet.Recipe(
                    epochs=epochs, qat_epochs=1, batch_size=32, flip=False, learning_rate=0.1, seed=seed
                )
                out = arguments.out.expanduser() / name / f"{spec.name}-{start}-f{freeze}-e{epochs}-s{seed}"
                initial = None if start == "nothing" else net
                run = fnet.train(spec, data, out=out, recipe=recipe, initial=initial, freeze=freeze)
                row = {"set": name, "images": len(data.train), "net": spec.name, "start": start, "freeze": freeze}
                row |= {"epochs": epochs, "seed": seed, "macs": run.metrics["macs"]}
                for split, found in run.metrics["accuracy"].items():
                    row |= {f"{split}_float": found["float"], f"{split}_int8": found["tflite"]}
                rows.append(row)
                write_csv(RESULTS, rows)
    keys = ("set", "net", "start", "freeze", "epochs")
    groups = {tuple(row[key] for key in keys): [] for row in rows}
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row["test_int8"])
    means = [dict(zip(keys, key)) | {"int8 test": f"{np.mean(found):.2%}"} for key, found in groups.items()]
    show_rows(means, title="Means over seeds")


def few(data: fnet.Dataset, count: int) -> fnet.Dataset:
    """The data set with so many training and validation images a class; all test images."""
    cut = {}
    for name in ("train", "validation"):
        images, labels = data.splits[name].images, data.splits[name].labels
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(data.num_classes)]))
        cut[name] = fnet.Split(images[chosen], labels[chosen])
    return dataclasses.replace(data, **cut)


def signs(arguments) -> fnet.Dataset:
    """All 2,062 images, split by class."""
    if arguments.signs is None:
        raise ValueError("give --signs")
    return fnet.load_dataset(arguments.signs, input_shape=SHAPE)


def gtsrb(_) -> fnet.Dataset:
    """10 images a class."""
    return few(fnet.load_dataset("gtsrb", input_shape=SHAPE), 10)


def fashion_mnist(arguments) -> fnet.Dataset:
    """100 images a class."""
    if arguments.fashion is None:
        return few(fnet.load_dataset("fashion_mnist", input_shape=SHAPE, download=False), 100)
    pairs = []
    for split in ("train", "t10k"):
        content = gzip.decompress((arguments.fashion / f"{split}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((arguments.fashion / f"{split}-labels-idx1-ubyte.gz").read_bytes())
        images = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28, 1)[:10_000]  # the test images' number
        pairs.append((images, np.frombuffer(labels, np.uint8, offset=8)[:10_000]))
    return few(fnet.load_dataset(tuple(pairs), input_shape=SHAPE, class_names=CLOTHES), 100)


SETS = {"signs": signs, "gtsrb": gtsrb, "fashion_mnist": fashion_mnist}

if __name__ == "__main__":
    main()
