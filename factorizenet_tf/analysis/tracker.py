"""Track a training and its layers' distributions: a line a layer and epoch to a file, these and the curves to TensorBoard."""

import os
import time
from pathlib import Path

import numpy as np
import pandas

from .._keras import keras, tf, to_float
from ..data import check_images
from ..files import write_text
from ..models.quantize import is_quantize_aware
from .distributions import describe
from .graph import by_channel, fuse
from .measure import kernel_error, values_by_channel
from .simulation import forward, quantized_kernel

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
        folder: for distributions.csv and TensorBoard's event files; made if it does not exist.
        images: uint8 (n, height, width, channels), at most some hundred; None: weights only.
        share: of the training's time that it may take, 0..1; None: measure each epoch, however long that takes.
        tensorboard: write event files, too: loss, accuracies and learning rate of each epoch, and scalars and histograms of
            the measurements. TensorBoard itself need not be installed.

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
        self.rows = pandas.DataFrame(columns=["phase", "epoch"])
        self._writer = None

    def on_train_begin(self, logs=None):
        """Read the lines that an earlier part of the training wrote."""
        self.phase = "qat" if is_quantize_aware(self.model) else "float"
        path = self.folder / FILE
        if path.exists():
            try:
                types = {"epoch": int, "range": float}
                self.rows = pandas.read_csv(path, dtype=types, float_precision="round_trip")
            except ValueError as error:
                raise ValueError(f"{path} is damaged ({error}); remove it, and the tracking starts anew") from None
        self._began, self._spent, self._last, self._first = time.perf_counter(), 0.0, 0.0, True
        if self.tensorboard and self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.folder / "tensorboard"))

    def on_epoch_begin(self, epoch, logs=None):
        """Drop lines of epochs that come again; measure the one before where it has none."""
        if not self._first:
            return
        self._first = False
        own = self.rows["phase"] == self.phase
        earlier = (self.rows["phase"] == "float") & (self.phase == "qat")
        self.rows = self.rows[earlier | (own & (self.rows["epoch"] <= epoch))]
        if epoch and not (own & (self.rows["epoch"] == epoch)).any():
            self._measure(epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Write the curves, and measure where the share of the time allows it."""
        if self._writer is not None:
            found = {f"{self.phase}/{name}": float(value) for name, value in (logs or {}).items()}
            self._write(epoch + 1, {tag: (tf.constant(value), "scalars", 1) for tag, value in found.items()})
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
            for op, _, output in forward(graph, to_float(self.images)):
                measured[op.name, "activations"] = describe(values_by_channel(output))
        rows = []
        for (layer, tensor), distribution in measured.items():
            row = {"phase": self.phase, "epoch": epoch, "layer": layer, "tensor": tensor} | distribution.row()
            for name in ("per_channel", "per_tensor"):  # of the folded kernel in 8 bits
                row[f"{name}_sqnr_db"] = np.nan
                if tensor == "folded":
                    op = kernels[layer]
                    quantized, _ = quantized_kernel(op.folded, op.kind, per_channel=name == "per_channel")
                    _, row[f"{name}_sqnr_db"] = kernel_error(op, quantized)
            rows.append(row)
            if self._writer is not None:
                self._write_events(row, distribution)
        self.rows = pandas.concat([self.rows, pandas.DataFrame(rows)]) if len(self.rows) else pandas.DataFrame(rows)
        write_text(self.folder / FILE, self.rows.to_csv(index=False, lineterminator="\n"))
        self._last = time.perf_counter() - start
        self._spent += self._last

    def _write_events(self, row, distribution):
        of, layer, counts = f"{row['phase']}/{row['tensor']}", row["layer"], distribution.counts.sum(0)
        edges = np.linspace(distribution.minimum, distribution.maximum, len(counts) + 1)
        found = {f"{of}/{name}/{layer}": (tf.constant(row[name], tf.float32), "scalars", 1) for name in SCALARS}
        bins = np.stack([edges[:-1], edges[1:], counts], 1)
        found[f"{of}/{layer}"] = (tf.constant(bins, tf.float64), "histograms", 2)
        self._write(row["epoch"], found)

    def _write(self, epoch, found):
        with self._writer.as_default(epoch):
            for tag, (values, *shown_as) in found.items():
                if np.isfinite(values).all():
                    tf.summary.write(tag, values, metadata=_metadata(*shown_as))
        self._writer.flush()


def _metadata(plugin: str, data_class: int):
    """What tells TensorBoard how to show a tensor; 1 is its class of scalars, 2 of tensors."""
    metadata = tf.compat.v1.SummaryMetadata(data_class=data_class)
    metadata.plugin_data.plugin_name = plugin
    return metadata
