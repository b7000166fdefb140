"""Is a net more accurate than its rival, by how much, and what does each cost? The difference comes with its 95 % interval.

    python tuner/compare.py fnet-deep-int8 fnet-l6-x1.5-int8 --rival baseline-resnet8-int8

Takes names of the zoo, runs' folders or .tflite files. Both nets see the same test images, so the interval is a paired bootstrap's: of
the images, drawn anew with replacement 10,000 times, those that one net alone has right decide. It covers the luck of the
images, not that of a training: differences of one training each may change by a point with another seed. Milliseconds are
taken in turns, here. Writes results/comparison.csv, with a row for each pair.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from exhaustive import read_rows

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.cost import count_macs
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve
from factorizenet_tf.tflite.latency import inference, time_in_turns
from factorizenet_tf.tflite.micro import arena_bytes

RESULTS = Path(__file__).parent / "results" / "comparison.csv"
RESAMPLES = 10_000


def main() -> None:
    """Parse, compare each net, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("nets", nargs="+", help="int8 nets")
    parser.add_argument("--rival", default="baseline-resnet8-int8", help="the int8 net that they are compared with")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the table")
    arguments = parser.parse_args()
    rival = resolve(arguments.rival)
    data = fnet.load_dataset(rival.dataset_name, input_shape=rival.input_shape)
    rows = [compared(resolve(net), rival, data) for net in arguments.nets]
    pairs = {(row["net"], row["rival"]) for row in rows}
    write_csv(
        arguments.out, [row for row in read_rows(arguments.out) if (row["net"], row["rival"]) not in pairs] + rows
    )
    show_rows(rows, title=f"{data.title}, {len(data.held_out[1]):,} {data.held_out[0]} images, int8")


def compared(net, rival, data: fnet.Dataset) -> dict:
    """Give a row: the net's accuracies, its difference from the rival's in points with interval, and its costs by the rival's."""
    own, other = net.int8_model(), rival.int8_model()
    split = data.held_out[1]
    hits = [model.predict(split.images).argmax(1) == split.labels for model in (own, other)]
    low, high = interval(*hits)
    contents = [source.tflite() for source in (rival, net)]
    times = time_in_turns([inference(content) for content in contents])
    arenas, macs = (
        [arena_bytes(content) for content in contents],
        [count_macs(fnet.build(source.spec)) for source in (rival, net)],
    )
    return {
        "net": net.reference,
        "rival": rival.reference,
        "validation": f"{100 * fnet.accuracy(own, data.validation):.2f}",
        "test": f"{100 * hits[0].mean():.2f}",
        "points": f"{100 * (hits[0].mean() - hits[1].mean()):+.2f}",
        "from": f"{100 * low:+.2f}",
        "to": f"{100 * high:+.2f}",
        "macs": f"{macs[1] / macs[0]:.2f}",
        "bytes": f"{len(contents[1]) / len(contents[0]):.2f}",
        "arena": f"{arenas[1] / arenas[0]:.2f}",
        "ms": f"{np.median(times[:, 1] / times[:, 0]):.2f}",
    }


def interval(own: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Give the 95 % interval of the difference of two accuracies (0..1) by a paired bootstrap.

    Args:
        own, other: whether each net has an image right, bool (n,).
    """
    count = len(own)
    shares = [np.mean(own & ~other), np.mean(~own & other)]
    drawn = np.random.default_rng(0).multinomial(count, [*shares, 1 - sum(shares)], RESAMPLES)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / count, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
