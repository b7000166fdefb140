"""Nets of other people's design at a share of their MACs: factorized and tuned, beside the same design made narrower.

    nice python tuner/others.py --out runs/others [--only resnet20 vgg]   # trains what is missing; killed, it goes on
    python tuner/others.py --out runs/others --measure                    # bytes, arena and milliseconds of what is there

ResNet-8 is the zoo's (45 + 5 epochs); ResNet-20 and a plain VGG, each of about 40 M MACs, are trained for 30 + 3 epochs here. The
factorized net is tuned as `factorizenet factorize NET --max-macs 50% --run ...` does, 5 + 1 epochs with the original as teacher; the
one that is as fast keeps to the original's milliseconds, too (`--max-latency-ms 100%`), on the machine that chose its levels. The
narrower one has every width cut to the same factor, the widest within the same MACs, and is trained from random weights for as many epochs as the
original and its tuning together. One recipe, one seed, CIFAR-10 (JPEG), all validation and test images. Writes results/others.csv;
milliseconds are shares of the original's, taken in turns, of the file as it is and as `export --regroup fastest` makes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from factorized import costs_of

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.cli import main as factorizenet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve
from factorizenet_tf.runs import load_run
from factorizenet_tf.tflite.latency import inference, time_in_turns
from factorizenet_tf.tflite.regroup import regroup_fastest

RESULTS = Path(__file__).parent / "results" / "others.csv"
TUNING = fnet.tuning_recipe_for("cifar10")


def normalized(x, filters, stride, name, activation="relu"):
    """3x3 convolution, BatchNorm, ReLU."""
    x = keras.layers.Conv2D(
        filters, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    return x if activation is None else keras.layers.ReLU(name=f"{name}_relu")(x)


def resnet(blocks: int, width: float, name: str) -> keras.Model:
    """Build the ResNet of 6 x blocks + 2 layers for CIFAR-10 (He et al., arXiv 1512.03385, 4.2; projections where the size changes)."""
    image = keras.Input((32, 32, 3), name="image")
    x = normalized(image, round(16 * width), 1, "stem")
    for stage, channels in enumerate((16, 32, 64), 1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            prefix, filters = f"stage{stage}_block{block}", round(channels * width)
            y = normalized(x, filters, stride, f"{prefix}_conv1")
            y = normalized(y, filters, 1, f"{prefix}_conv2", activation=None)
            if stride == 2:
                x = keras.layers.Conv2D(filters, 1, stride, name=f"{prefix}_shortcut")(x)
            x = keras.layers.ReLU(name=f"{prefix}_relu")(keras.layers.Add(name=f"{prefix}_add")([x, y]))
    return classifier(image, x, name)


def vgg(width: float, name: str) -> keras.Model:
    """Build a plain net of pairs of 3x3 convolutions (after Simonyan and Zisserman, arXiv 1409.1556), with BatchNorm."""
    x = image = keras.Input((32, 32, 3), name="image")
    for stage, channels in enumerate((32, 64, 128), 1):
        for number in (1, 2):
            x = normalized(x, round(channels * width), 1, f"conv{stage}_{number}")
        x = keras.layers.MaxPooling2D(name=f"pool{stage}")(x)
    return classifier(image, x, name)


def classifier(image, x, name) -> keras.Model:
    """Average over the places, ten logits."""
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x), name=name)


# name: (how it is built of a width and a name, epochs and QAT epochs of the original, the zoo's net where it has one, shares)
NETS = {
    "resnet8": (lambda *of: resnet(1, *of), (45, 5), "baseline-resnet8-float", (0.75, 0.5, 0.35, 0.25)),
    "resnet20": (lambda *of: resnet(3, *of), (30, 3), None, (0.5,)),
    "vgg": (vgg, (30, 3), None, (0.5,)),
}


def main() -> None:
    """Parse, train what is missing or measure what is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=NETS, default=list(NETS), help="which nets")
    parser.add_argument("--what", nargs="*", choices=KINDS, default=list(KINDS), help="which runs of each")
    parser.add_argument("--measure", action="store_true", help="train nothing, write the table")
    arguments = parser.parse_args()
    if arguments.measure:
        rows = [row for name in arguments.only for row in measured(name, arguments.out)]
        write_csv(RESULTS, rows)
        show_rows(rows, title="CIFAR-10 (JPEG), int8")
        return
    data = fnet.load_dataset("cifar10")
    for name in arguments.only:
        for kind in arguments.what:
            KINDS[kind](name, arguments.out, data)


def train_original(name: str, out: Path, data: fnet.Dataset) -> None:
    """Train the original, unless it is the zoo's."""
    build, epochs, of_zoo, _ = NETS[name]
    if of_zoo is None:
        trained(build(1, name), data, out / name, epochs)


def tune_factorized(name: str, out: Path, data: fnet.Dataset) -> None:
    """Factorize the original and tune what it becomes, by the command line."""
    for share in NETS[name][3]:
        run_factorize(name, out, out / f"{name}-{100 * share:g}", f"{100 * share:g}%")


def tune_as_fast(name: str, out: Path, data: fnet.Dataset) -> None:
    """Factorize the original to half of its MACs and no more than its milliseconds here, and tune it."""
    run_factorize(name, out, out / f"{name}-50-fast", "50%", "--max-latency-ms", "100%")


def run_factorize(name: str, out: Path, run: Path, share: str, *more: str) -> None:
    """Call the command line, unless the run is there."""
    if not (run / "metrics.json").exists():
        command = ["factorize", NETS[name][2] or str(out / name), "--dataset", "cifar10", "--max-macs", share, *more]
        if factorizenet([*command, "--run", str(run), "--quiet"]):
            raise SystemExit(1)


def train_narrower(name: str, out: Path, data: fnet.Dataset) -> None:
    """Train the widest net of the same design within half of its MACs, for as many epochs as the original and its tuning."""
    build, (epochs, qat_epochs), _, _ = NETS[name]
    limit = 0.5 * fnet.count_macs(build(1, name))
    widths = np.arange(1, 0.5, -0.005)
    width = next(width for width in widths if fnet.count_macs(build(width, name)) <= limit)
    epochs = (epochs + TUNING.epochs, qat_epochs + TUNING.qat_epochs)
    trained(build(width, f"{name}_narrower"), data, out / f"{name}-narrower", epochs)


KINDS = {
    "original": train_original,
    "factorized": tune_factorized,
    "as-fast": tune_as_fast,
    "narrower": train_narrower,
}


def trained(model: keras.Model, data: fnet.Dataset, out: Path, epochs: tuple[int, int]) -> None:
    """Train a model from its random weights by the package's recipe."""
    recipe = fnet.recipe_for(data.name, epochs=epochs[0], qat_epochs=epochs[1])
    spec = fnet.architecture_of(model, out.name)
    run = fnet.train(spec, data, out=out, recipe=recipe)
    print(out.name, run.metrics["macs"], run.metrics["accuracy"], flush=True)


def measured(name: str, out: Path) -> list[dict]:
    """Give the rows of a net: the original, what it was factorized to, and the narrower one, as far as they are trained."""
    _, _, of_zoo, shares = NETS[name]
    original = resolve(of_zoo.replace("float", "int8") if of_zoo else out / name).with_precision("int8")
    runs = {f"factorized, {100 * share:g} %": out / f"{name}-{100 * share:g}" for share in shares}
    runs |= {"factorized, 50 %, as fast": out / f"{name}-50-fast", "narrower": out / f"{name}-narrower"}
    runs = {how: run for how, run in runs.items() if (run / "metrics.json").exists()}
    return [row(name, "original", original, original)] + [
        row(name, how, resolve(run).with_precision("int8"), original) for how, run in runs.items()
    ]


def row(name: str, how: str, source, original) -> dict:
    """Measure one net: its accuracies as its run or card says them, its costs here."""
    content = source.tflite()
    files = [original.tflite(), content, regroup_fastest(content).content]
    times = time_in_turns([inference(file) for file in files])
    ratios = np.median(times[:, 1:] / times[:, :1], axis=0)
    accuracies = source.card.accuracies if source.card else load_run(source.path).metrics["accuracy"]
    found = {
        f"{short}_{kind}": accuracies[split][key]
        for split, short in (("validation", "val"), ("test", "test"))
        for kind, key in (("float", "float"), ("int8", "tflite"))
    }
    return {
        "net": name,
        "how": how,
        **costs_of(fnet.build(source.spec), content),
        "latency_ratio": round(float(ratios[0]), 2),
        "latency_ratio_regrouped": round(float(ratios[1]), 2),
        **{key: round(value, 4) for key, value in found.items()},
    }


if __name__ == "__main__":
    main()
