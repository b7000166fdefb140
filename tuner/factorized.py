"""What closed-form factorization keeps of a trained net, before any training: accuracy at shares of its MACs.

    python tuner/factorized.py [--net baseline-resnet8-float ...]

Levels and middles are chosen from the table of 256 training images, the layers fitted on 768 of them; int8 by PTQ. Some minutes a
net. Writes tuner/results/factorized.csv; accuracies are of CIFAR-10 (JPEG)'s whole validation and test splits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from exhaustive import read_rows

import factorizenet_tf as fnet
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve
from factorizenet_tf.tflite.latency import inference, time_in_turns
from factorizenet_tf.tflite.micro import arena_bytes
from factorizenet_tf.tflite.regroup import on_copies

RESULTS = Path(__file__).parent / "results" / "factorized.csv"
SHARES = (0.75, 0.5, 0.35, 0.25)


def main() -> None:
    """Factorize, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", nargs="*", default=["baseline-resnet8-float"], help="float nets of the zoo, or runs")
    arguments = parser.parse_args()
    data = fnet.load_dataset("cifar10")
    for name in arguments.net:
        model = resolve(name).with_precision("float").float_model()
        images = data.calibration(768)
        macs = fnet.count_macs(model)
        table = fnet.factorization_table(model, images[:256])
        original = fnet.to_tflite(model, calibration=images)
        rows = [row(data, name, "original", model, original, original)]
        nets = {
            "level 2": ({"level": 2}),
            "last level": ({"level": 9}),
            "last level, middle 3": {"level": 9, "middle": 3},
        }
        for share in SHARES:
            level, middle = fnet.choose_levels(model, table, share * macs)
            nets[f"{100 * share:g} %, chosen"] = {"level": level, "middle": middle}
        for how, choice in nets.items():
            net = fnet.factorize(model, **choice, calibration=images)
            rows.append(row(data, name, how, net, fnet.to_tflite(net, calibration=images), original))
            print(rows[-1], flush=True)
        kept = [old for old in read_rows(RESULTS) if old["net"] != name] if RESULTS.exists() else []
        write_csv(RESULTS, kept + rows)


def row(data, name, how, model, content, original) -> dict:
    """Measure one net; its latency as a ratio to the original's, taken in turns, as it is and as `export --regroup fastest` makes it."""
    times = time_in_turns([inference(each) for each in (original, content, on_copies(content))])
    ratios = np.median(times[:, 1:] / times[:, :1], axis=0)
    int8 = fnet.Int8Model(content)
    return {
        "net": name,
        "factorized": how,
        **costs_of(model, content),
        "latency_ratio": round(float(ratios[0]), 2),
        "latency_ratio_on_copies": round(float(ratios[1]), 2),
        "val_float": round(fnet.accuracy(model, data.validation), 4),
        "val_int8": round(fnet.accuracy(int8, data.validation), 4),
        "test_int8": round(fnet.accuracy(int8, data.test), 4),
    }


def costs_of(model, content: bytes) -> dict[str, int]:
    """Give a net's MACs and parameters, and its int8 file's bytes and arena."""
    costs = {"macs": fnet.count_macs(model), "params": fnet.count_params(model)}
    return costs | {"size_bytes": len(content), "ram_bytes": arena_bytes(content)}


if __name__ == "__main__":
    main()
