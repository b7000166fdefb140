"""The loop of one training phase: epochs, callbacks, checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ._keras import keras, tf
from .checkpoint import CHECKPOINT_FILE, Checkpoint, read_checkpoint, write_checkpoint
from .data import Dataset, Split
from .evaluation import accuracy
from .files import write_csv
from .grouped import warn_without_native_gradient
from .progress import Progress
from .recipe import Recipe, learning_rate_at
from .step import make_step

__all__ = ["NanLossError", "Trainer", "batches", "compiled_step"]

PHASES = ("float", "qat")


class NanLossError(ArithmeticError):
    """The loss became NaN or infinite; the last good checkpoint is kept and nothing after it was written."""


@dataclass
class Trainer:
    """What the phases of a run share: folder, data, recipe, and the checkpoint that they go on from.

    Args:
        folder: where checkpoint.npz and history.csv are.
        title: of the net, in progress lines.
        dataset, recipe, callbacks, strategy: as for `train`.
        progress: says how far it is.
    """

    folder: Path
    title: str
    dataset: Dataset
    recipe: Recipe
    callbacks: tuple
    strategy: tf.distribute.Strategy
    progress: Progress
    checkpoint: Checkpoint | None = field(init=False)
    history: list[dict] = field(init=False)

    def __post_init__(self):
        path = self.folder / CHECKPOINT_FILE
        self.checkpoint = read_checkpoint(path) if path.exists() else None
        self.history = list(self.checkpoint.history) if self.checkpoint else []

    def has_begun(self, phase: str) -> bool:
        """Whether the checkpoint is of this phase."""
        return self.checkpoint is not None and self.checkpoint.phase == phase

    def _kept(self) -> str:
        if not self.history:
            return "no epoch was finished"
        last = self.history[-1]
        return f"{last['phase']} epoch {last['epoch']} stays in {self.folder / CHECKPOINT_FILE}"

    def fit(self, phase: str, model: keras.Model) -> None:
        """Train a model to the end of "float" or "qat", from the checkpoint where it is of this phase.

        Raises:
            NanLossError: the loss is no longer finite.
            OSError: the folder cannot be written.
        """
        warn_without_native_gradient(model)
        recipe = self.recipe
        epochs, peak, warmup_epochs = {
            "float": (recipe.epochs, recipe.learning_rate, recipe.warmup_epochs),
            "qat": (recipe.qat_epochs, recipe.qat_learning_rate, 0),
        }[phase]
        with self.strategy.scope():
            step = make_step(model, recipe)
        first = 0
        if self.has_begun(phase):
            self.checkpoint.restore(step.variables)
            first = self.checkpoint.epoch
        compiled = compiled_step(step, self.strategy, recipe.batch_size)
        steps = len(self.dataset.train) // recipe.batch_size
        model.optimizer = step.optimizer  # where callbacks look for it
        callbacks = keras.callbacks.CallbackList(
            list(self.callbacks), model=model, epochs=epochs, steps=steps, verbose=0
        )
        model.stop_training = False
        callbacks.on_train_begin()
        for epoch in range(first, epochs):
            callbacks.on_epoch_begin(epoch)
            start = time.perf_counter()
            losses, hits = [], []
            bar = self.progress.bar(f"{self.title} {phase} epoch {epoch + 1}/{epochs}", steps)
            for i, (images, labels, seed) in enumerate(batches(self.dataset.train, recipe, phase, epoch)):
                callbacks.on_train_batch_begin(i)
                rate = learning_rate_at(
                    epoch * steps + i, steps=epochs * steps, warmup_steps=round(warmup_epochs * steps), peak=peak
                )
                loss, hit = (float(v) for v in compiled(images, labels, rate, seed))
                if not math.isfinite(loss):
                    raise NanLossError(
                        f"the loss is {loss} at step {i + 1} of {phase} epoch {epoch + 1}; {self._kept()}: "
                        "use a lower learning rate in a new folder"
                    )
                losses.append(loss)
                hits.append(hit)
                bar.advance(loss=loss)
                callbacks.on_train_batch_end(i, {"loss": loss, "accuracy": hit})
            row = {
                "phase": phase,
                "epoch": epoch + 1,
                "learning_rate": rate,
                "loss": float(np.mean(losses)),
                "accuracy": float(np.mean(hits)),
                "val_accuracy": accuracy(model, self.dataset.validation),
                "seconds": round(time.perf_counter() - start, 2),
            }
            self.history.append(row)
            write_checkpoint(
                self.folder / CHECKPOINT_FILE,
                phase=phase,
                epoch=epoch + 1,
                history=self.history,
                variables=step.variables,
            )
            write_csv(self.folder / "history.csv", self.history)
            self.progress.epoch(self.title, row, epochs)
            callbacks.on_epoch_end(epoch, {k: row[k] for k in ("loss", "accuracy", "val_accuracy", "learning_rate")})
            if model.stop_training:
                break
        callbacks.on_train_end()


def batches(split: Split, recipe: Recipe, phase: str, epoch: int):
    """(images, labels, seed) of each step of an epoch: the same for the same seed, phase and epoch.

    The last images that fill no batch are left out; the order is another one each epoch.
    """
    random = np.random.default_rng((recipe.seed, PHASES.index(phase), epoch))
    order = random.permutation(len(split))
    for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        seed = random.integers(0, 2**31, 2, dtype=np.int32)
        yield split.images[chosen], split.labels[chosen], seed


def compiled_step(step, strategy, batch_size):
    """The step over all replicas as one function of the whole batch: (loss, accuracy)."""

    @tf.function
    def run(images, labels, rate, seed):
        results = strategy.run(step.train, args=(images, labels, rate, seed))
        return tuple(strategy.reduce(tf.distribute.ReduceOp.MEAN, r, axis=None) for r in results)

    replicas = strategy.num_replicas_in_sync
    share = batch_size // replicas

    def call(images, labels, rate, seed):
        if replicas > 1:
            images, labels = (
                strategy.experimental_distribute_values_from_function(
                    lambda context, whole=whole: tf.constant(whole[context.replica_id_in_sync_group * share :][:share])
                )
                for whole in (images, labels)
            )
        else:
            images, labels = tf.constant(images), tf.constant(labels)
        return run(images, labels, tf.constant(rate, tf.float32), tf.constant(seed))

    return call
