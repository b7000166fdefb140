"""The loop of one training phase: epochs, callbacks, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .._keras import keras, tf, to_float
from ..console import Progress
from ..data import Dataset, Split
from ..files import write_csv
from ..models.evaluate import accuracy
from ..models.native import warn_without_native_gradient
from ..recipe import Recipe, learning_rate_at
from ..runs import CHECKPOINT_FILE, Checkpoint, read_checkpoint, write_checkpoint

__all__ = [
    "DivergedError",
    "NanLossError",
    "Step",
    "Trainer",
    "augment",
    "batches",
    "compiled_step",
    "make_step",
]


def augment(images, seed, recipe: Recipe):
    """A batch as the net sees it in training.

    Args:
        images: uint8 (batch, height, width, channels), static shape.
        seed: int32 (2,); the same seed gives the same crops (under XLA others, the same each time).
        recipe: `crop_padding`, `flip` and `cutout` are read.

    Returns:
        float32 (batch, height, width, channels) in 0..1.
    """
    batch, height, width, _ = images.shape
    shorter = min(height, width)
    rows, columns, mirrored, holes = tf.unstack(tf.random.experimental.stateless_split(seed, 4))
    padding = round(recipe.crop_padding * shorter)
    if padding:
        images = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
        images = _shifted(images, rows, batch, 1, height, padding)
        images = _shifted(images, columns, batch, 2, width, padding)
    if recipe.flip:
        chosen = tf.random.stateless_uniform((batch, 1, 1, 1), mirrored) < 0.5
        images = tf.where(chosen, images[:, :, ::-1], images)
    side = round(recipe.cutout * shorter)
    if side:
        centre = tf.random.stateless_uniform((2, batch), holes)
        hole = _stripe(centre[0], height, side)[:, :, None] & _stripe(centre[1], width, side)[:, None, :]
        images = tf.where(hole[..., None], tf.zeros((), images.dtype), images)
    return to_float(images)


def _shifted(images, seed, batch, axis, size, padding):
    """Cut `size` rows (axis 1) or columns (axis 2) from a place of each image's own."""
    first = tf.random.stateless_uniform((batch, 1), seed, maxval=2 * padding + 1, dtype=tf.int32)
    return tf.gather(images, first + tf.range(size), axis=axis, batch_dims=1)


def _stripe(centre, size, side):
    """Bool (batch, size): within `side` pixels around a centre in 0..1."""
    start = tf.cast(centre[:, None] * size, tf.int32) - side // 2
    place = tf.range(size)[None, :]
    return (place >= start) & (place < start + side)


@dataclass(frozen=True)
class Step:
    """What trains one model under one recipe.

    Args:
        train: (images uint8 (batch, height, width, channels), labels int32 (batch,), learning_rate float32 (),
            seed int32 (2,)) -> (loss float32 (), accuracy float32 ()); updates the variables. The batch is a replica's
            own share and its shape is static. Not a tf.function: callers compile it as they need.
        predict: images uint8 (batch, height, width, channels) -> class ids int32 (batch,), inference mode.
        variables: every variable the two functions read or write, optimizer included, in a fixed order.
        optimizer: the optimizer whose state is among the variables.
    """

    train: Callable
    predict: Callable
    variables: tuple[tf.Variable, ...]
    optimizer: keras.optimizers.Optimizer


def make_step(model: keras.Model, recipe: Recipe) -> Step:
    """The training step of a model; call it in the strategy's scope where there is one."""
    optimizer = keras.optimizers.SGD(0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0, jit_compile=False)
    trainable = model.trainable_variables
    optimizer.build(trainable)
    decayed = [v.name.rsplit("/", 1)[-1].startswith(("kernel", "depthwise_kernel")) for v in trainable]
    classes = model.output_shape[-1]

    def train(images, labels, learning_rate, seed):
        context = tf.distribute.get_replica_context()
        share = 1 / context.num_replicas_in_sync
        # Replicas see other crops: fold the replica's number into the seed.
        seed = tf.random.experimental.stateless_fold_in(seed, context.replica_id_in_sync_group)
        inputs = augment(images, seed, recipe)
        off = recipe.label_smoothing / classes
        targets = tf.one_hot(labels, classes, on_value=1 - recipe.label_smoothing + off, off_value=off)
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))
            scaled = loss * share
        gradients = tape.gradient(scaled, trainable)
        # The optimizer sums over replicas, so each adds its share of the decay.
        gradients = [
            g + share * recipe.weight_decay * v if is_decayed else g
            for g, v, is_decayed in zip(gradients, trainable, decayed)
        ]
        optimizer.learning_rate.assign(learning_rate)
        optimizer.apply_gradients(zip(gradients, trainable))
        accuracy = tf.reduce_mean(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32))
        return loss, accuracy

    def predict(images):
        return tf.argmax(model(to_float(images), training=False), -1, tf.int32)

    return Step(train, predict, (*model.variables, *optimizer.variables, optimizer.learning_rate), optimizer)


PHASES = ("float", "qat")


# An epoch whose mean loss is that many times the loss of a guess, ln(classes), is diverged: weights that give such logits
# have no int8 form.
DIVERGED_LOSS = 10


class DivergedError(ArithmeticError):
    """The training diverged: loss or weights are not finite, or the loss is far above that of guessing.

    The checkpoint of the last good epoch is kept and nothing after it was written.
    """


NanLossError = DivergedError  # its name up to 0.2


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

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(f"training diverged: {what}; {self._kept()}: use a lower learning rate in a new folder")

    def _check_epoch(self, epoch: str, loss: float, model: keras.Model) -> None:
        guess = math.log(model.output_shape[-1])
        if loss > DIVERGED_LOSS * guess:
            raise self._diverged(f"the mean loss of {epoch} is {loss:.3g}, that of guessing {guess:.3g}")
        for variable in model.variables:
            if not np.isfinite(variable.numpy()).all():
                raise self._diverged(f"{variable.name} is not finite after {epoch}")

    def fit(self, phase: str, model: keras.Model) -> None:
        """Train a model to the end of "float" or "qat", from the checkpoint where it is of this phase.

        Raises:
            DivergedError: the loss or a weight is not finite, or an epoch's loss is far above that of guessing.
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
                    raise self._diverged(f"the loss is {loss} at step {i + 1} of {phase} epoch {epoch + 1}")
                losses.append(loss)
                hits.append(hit)
                bar.advance(loss=loss)
                callbacks.on_train_batch_end(i, {"loss": loss, "accuracy": hit})
            self._check_epoch(f"{phase} epoch {epoch + 1}", float(np.mean(losses)), model)
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
