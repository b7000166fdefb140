"""What the closed-form fit of a factorized net owes to its images, its damping and its sweeps: accuracy before any training.

    python tuner/fitting.py

The zoo's ResNet-8, each convolution but the stem at level 2, and at the last level with three times the channels between its parts,
float, on CIFAR-10 (JPEG)'s validation images. One number at a time is changed from what `factorize` has; three draws of training
images each. Some minutes. Writes tuner/results/fitting.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve
from factorizenet_tf.models import factorize, low_rank

RESULTS = Path(__file__).parent / "results" / "fitting.csv"
NET, DRAWS = "baseline-resnet8-float", 3
NETS = {"level_2": {"level": 2}, "last_level_middle_3": {"level": 9, "middle": 3}}
OWN = {"images": 768, "damping": low_rank.DAMPING, "sweeps": low_rank.SWEEPS, "positions": factorize.MAX_PLACES}
TRIED = {
    "images": (96, 256, 2048, 4096),
    "damping": (1e-5, 1e-4, 1e-2, 1e-1),
    "sweeps": (1, 2, 8),
    "positions": (OWN["positions"] // 8, OWN["positions"] * 4),
}


def main() -> None:
    """Fit, measure, write the table."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    data, model = fnet.load_dataset("cifar10"), resolve(NET).float_model()
    rows = []
    for changed in ({}, *({name: value} for name, values in TRIED.items() for value in values)):
        how = OWN | changed
        row = {"changed": next(iter(changed), ""), **how}
        for title, choice in NETS.items():
            found = [accuracy(model, data, how, choice, draw) for draw in range(DRAWS)]
            row |= {title: round(float(np.mean(found)), 4), f"{title}_spread": round(max(found) - min(found), 4)}
        rows.append(row)
        print(row, flush=True)
        write_csv(RESULTS, rows)
    show_rows(rows, title=f"{NET}, {data.title}, validation, untuned, mean of {DRAWS} draws of images")


def accuracy(model, data, how: dict, choice: dict, draw: int) -> float:
    """Factorize with these numbers and a draw of training images, and give the validation accuracy."""
    chosen = np.random.default_rng(draw).choice(len(data.train), how["images"], replace=False)
    with (
        mock.patch.object(low_rank, "DAMPING", how["damping"]),
        mock.patch.object(low_rank, "SWEEPS", how["sweeps"]),
        mock.patch.object(factorize, "MAX_PLACES", how["positions"]),
    ):
        net = fnet.factorize(model, **choice, calibration=data.train.images[np.sort(chosen)])
    return fnet.accuracy(net, data.validation)


if __name__ == "__main__":
    main()
