"""The layers' distributions tracked while a net trains: a line a layer and epoch, to a file and to TensorBoard."""

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
from .graph import by_channel, graph_of
from .simulation import forward, quantized_kernel
from .tables import PERCENT, sqnr_db

__all__ = ["DistributionTracker"]

FILE = "distributions.csv"
SHARE = 0.05
SCALARS = ("range", "average_channel_precision", "kurtosis", "per_channel_sqnr_db", "per_tensor_sqnr_db")


class DistributionTracker(keras.callbacks.Callback):
    """A tf_keras callback, for `train(..., callbacks=[...])` or `model.fit`.

    At the end of an epoch it measures the folded weights of each layer, and its float output on a few images, and
    rewrites distributions.csv. It takes at most a share of the time: where it has used that up, epochs are left out.
    With a training that goes on it goes on, too: lines of epochs that are trained again are dropped, and the epoch that
    a kill left without lines gets them.

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
        graph = graph_of(self.model)
        found, extra = {}, {}
        for op in graph.kernels:
            found[op.name, "folded"] = describe(by_channel(op.folded, op.kind))
            extra[op.name] = {
                f"{name}_sqnr_db": _weight_sqnr(op, per_channel)
                for name, per_channel in (("per_channel", True), ("per_tensor", False))
            }
        if self.images is not None:
            for op, output in forward(graph, to_float(self.images)):
                values = output.numpy()
                found[op.name, "activations"] = describe(values.reshape(-1, values.shape[-1]))
        where = {"phase": self.phase, "epoch": epoch}
        new = [
            where | {"layer": layer, "tensor": tensor} | _row(d, extra.get(layer, {}) if tensor == "folded" else {})
            for (layer, tensor), d in found.items()
        ]
        self.rows += new
        write_csv(self.folder / FILE, self.rows)
        if self._writer is not None:
            self._write_events(epoch, new, found)
        self._last = time.perf_counter() - start
        self._spent += self._last

    def _write_events(self, epoch, rows, found):
        with self._writer.as_default():
            for row in rows:
                for name in SCALARS:
                    if row[name] != "" and np.isfinite(row[name]):
                        tag = f"{row['phase']}/{row['tensor']}/{name}/{row['layer']}"
                        tf.summary.write(tag, tf.constant(row[name], tf.float32), epoch, _metadata("scalars", 1))
            for (layer, tensor), distribution in found.items():
                counts = distribution.counts.sum(0)
                edges = np.linspace(distribution.minimum, distribution.maximum, len(counts) + 1)
                bins = np.stack([edges[:-1], edges[1:], counts], 1)
                if np.isfinite(bins).all():
                    tag = f"{self.phase}/{tensor}/{layer}"
                    tf.summary.write(tag, tf.constant(bins, tf.float64), epoch, _metadata("histograms", 2))
        self._writer.flush()


def _row(found: Distribution, sqnr: dict) -> dict:
    return {
        "minimum": found.minimum,
        "maximum": found.maximum,
        "range": found.range,
        "percentile_range": found.percentile(PERCENT) - found.percentile(100 - PERCENT),
        "average_channel_precision": found.average_channel_precision,
        "std": found.std,
        "kurtosis": found.kurtosis,
        "not_finite": found.not_finite,
        "per_channel_sqnr_db": sqnr.get("per_channel_sqnr_db", ""),
        "per_tensor_sqnr_db": sqnr.get("per_tensor_sqnr_db", ""),
    }


def _weight_sqnr(op, per_channel):
    """Of the folded kernel in 8 bits."""
    _, _, values = quantized_kernel(op.folded, op.kind, per_channel=per_channel)
    kernel = op.folded.astype(np.float64)
    return sqnr_db(float(np.sum(kernel**2)), float(np.sum((kernel - values) ** 2)))


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
