"""Track the layers' distributions while a net trains: a line a layer and epoch, to a file and to TensorBoard."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import numpy as np

from .._keras import keras, tf, to_float
from ..data import check_images
from ..files import write_csv
from ..models.quantize import is_quantize_aware
from .distributions import Distribution, describe
from .graph import FusedOp, by_channel, fuse
from .simulation import forward, quantized_kernel
from .tables import PERCENT, sqnr_db

__all__ = ["DistributionTracker"]

FILE = "distributions.csv"
SHARE = 0.05
SCALARS = ("range", "average_channel_precision", "kurtosis", "per_channel_sqnr_db", "per_tensor_sqnr_db")


class DistributionTracker(keras.callbacks.Callback):
    """Measure each layer's weights and outputs at the end of epochs: a tf_keras callback for `train` or `model.fit`.

    It measures the BatchNorm-folded weights of each layer, and its float output on a few images, and rewrites
    distributions.csv. It leaves epochs out to stay within its share of the training's time. When a training is
    continued, it drops the lines of epochs that are trained again, and writes those of the last epoch if the training
    was killed before they were written.

    Args:
        folder: for distributions.csv and TensorBoard's event files; made where it is not there.
        images: uint8 (n, height, width, channels), at most some hundred; None: weights only.
        share: of the training's time that it may take, 0..1; None measures each epoch whatever it takes.
        tensorboard: write event files, too (scalars and histograms; TensorBoard itself need not be installed).

    Raises:
        TypeError, ValueError: images that are not uint8 or empty, or a share out of 0..1.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        images: np.ndarray | None = None,
        *,
        share: float | None = SHARE,
        tensorboard: bool = True,
    ):
        super().__init__()
        if images is not None:
            check_images(images)
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be above 0 and at most 1, or None")
        self.folder, self.images, self.share, self.tensorboard = Path(folder), images, share, tensorboard
        self.rows: list[dict] = []
        self._writer = None

    def on_train_begin(self, logs=None):
        """Read what an earlier part of the training wrote."""
        self.phase = "qat" if is_quantize_aware(self.model) else "float"
        path = self.folder / FILE
        self.rows = _read(path) if path.exists() else []
        self._began, self._spent, self._last, self._first = time.perf_counter(), 0.0, 0.0, True
        if self.tensorboard and self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))

    def on_epoch_begin(self, epoch, logs=None):
        """Drop lines of epochs that come again; measure the one before where it has none."""
        if not self._first:
            return
        self._first = False
        earlier = {"float": (), "qat": ("float",)}[self.phase]
        self.rows = [
            row
            for row in self.rows
            if row["phase"] in earlier or (row["phase"] == self.phase and int(row["epoch"]) <= epoch)
        ]
        if epoch and not any(row["phase"] == self.phase and int(row["epoch"]) == epoch for row in self.rows):
            self._measure(epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Measure, where the share of the time allows it."""
        used = time.perf_counter() - self._began
        if self.share is None or self._spent + self._last <= self.share * used:
            self._measure(epoch + 1)

    def on_train_end(self, logs=None):
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _measure(self, epoch: int) -> None:
        start = time.perf_counter()
        graph = fuse(self.model)
        kernels = {op.name: op for op in graph.kernels}
        measured = {(name, "folded"): describe(by_channel(op.folded, op.kind)) for name, op in kernels.items()}
        if self.images is not None:
            for op, output in forward(graph, to_float(self.images)):
                values = output.numpy()
                measured[op.name, "activations"] = describe(values.reshape(-1, values.shape[-1]))
        new = [
            {"phase": self.phase, "epoch": epoch, "layer": layer, "tensor": tensor}
            | _row(distribution)
            | _weight_sqnr(kernels[layer] if tensor == "folded" else None)
            for (layer, tensor), distribution in measured.items()
        ]
        self.rows += new
        write_csv(self.folder / FILE, self.rows)
        if self._writer is not None:
            self._write_events(epoch, new, measured)
        self._last = time.perf_counter() - start
        self._spent += self._last

    def _write_events(self, epoch, rows, measured):
        with self._writer.as_default():
            for row in rows:
                for name in SCALARS:
                    if row[name] != "" and np.isfinite(row[name]):
                        tag = f"{row['phase']}/{row['tensor']}/{name}/{row['layer']}"
                        tf.summary.write(tag, tf.constant(row[name], tf.float32), epoch, _metadata("scalars", 1))
            for (layer, tensor), distribution in measured.items():
                counts = distribution.counts.sum(0)
                edges = np.linspace(distribution.minimum, distribution.maximum, len(counts) + 1)
                bins = np.stack([edges[:-1], edges[1:], counts], 1)
                if np.isfinite(bins).all():
                    tag = f"{self.phase}/{tensor}/{layer}"
                    tf.summary.write(tag, tf.constant(bins, tf.float64), epoch, _metadata("histograms", 2))
        self._writer.flush()


def _row(distribution: Distribution) -> dict:
    low, high = distribution.percentile(100 - PERCENT), distribution.percentile(PERCENT)
    names = (
        "minimum",
        "maximum",
        "range",
        "percentile_range",
        "average_channel_precision",
        "std",
        "kurtosis",
        "not_finite",
    )
    return {name: high - low if name == "percentile_range" else getattr(distribution, name) for name in names}


def _weight_sqnr(op: FusedOp | None) -> dict:
    """Of the folded kernel in 8 bits, dB; empty where there is no kernel."""
    found = {}
    for name, per_channel in (("per_channel", True), ("per_tensor", False)):
        found[f"{name}_sqnr_db"] = ""
        if op is not None:
            _, _, values = quantized_kernel(op.folded, op.kind, per_channel=per_channel)
            kernel = op.folded.astype(np.float64)
            found[f"{name}_sqnr_db"] = sqnr_db(float(np.sum(kernel**2)), float(np.sum((kernel - values) ** 2)))
    return found


def _metadata(plugin: str, data_class: int):
    """What tells TensorBoard how to show a tensor; 1 is its class of scalars, 2 of tensors."""
    metadata = tf.compat.v1.SummaryMetadata(data_class=data_class)
    metadata.plugin_data.plugin_name = plugin
    return metadata


def _read(path: Path) -> list[dict]:
    """The lines of an earlier part, as they stand."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        for row in rows:
            row["epoch"] = int(row["epoch"])
            float(row["range"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); remove it, and the tracking starts anew") from None
    return rows
