"""The training loop: the epochs of one phase, with callbacks, checkpoints and a check for divergence.

It replaces Keras' `fit` because it resumes exactly: the order of the images, their crops and the learning rate of each step
follow from seed, phase and epoch alone, and all other state is in one checkpoint, written whole each epoch.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .._keras import keras, tf, to_float
from ..classes import balanced_weights
from ..console import Progress
from ..data import Dataset, Split
from ..files import write_csv
from ..models.evaluate import accuracy
from ..models.native import warn_without_native_gradient
from ..recipe import Recipe, learning_rate_at
from ..runs import CHECKPOINT_FILE, HISTORY_FILE, Checkpoint, read_checkpoint, write_checkpoint

__all__ = ["DivergedError", "NanLossError", "Step", "TrainingLoop", "augment", "batches", "batchnorm_estimator"]
__all__ += ["compiled_step", "diverged", "make_step", "train_epoch"]

PHASES = ("float", "qat")
DIVERGED_LOSS = 10  # times ln(classes), the loss of guessing: a larger mean loss of an epoch counts as diverged
TEMPERATURE = 2  # of a teacher's probabilities
BATCHNORM_IMAGES = 2_048  # about as many as the moving averages of a long training remember: 19 batches of 128


class DivergedError(ArithmeticError):
    """The training diverged: loss or weights are not finite, or the loss is far above that of guessing.

    The checkpoint of the last good epoch is kept.
    """


NanLossError = DivergedError  # its older name, which stays


def augment(images, seed, recipe: Recipe):
    """Augment a batch of images at random, as the net sees it in training.

    Args:
        images: uint8 (batch, height, width, channels), static shape.
        seed: int32 (2,); the same seed gives the same result (XLA gives another, also the same each time).
        recipe: `crop_padding`, `flip`, `rotate`, `cutout`, `brightness` and `contrast` are read.

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
        images = tf.where(chosen, tf.reverse(images, (2,)), images)
    if recipe.rotate:
        images = _rotated(tf.cast(images, tf.float32), tf.random.experimental.stateless_fold_in(seed, 1), recipe.rotate)
    side = round(recipe.cutout * shorter)
    if side:
        centre = tf.random.stateless_uniform((2, batch), holes)
        hole = _stripe(centre[0], height, side)[:, :, None] & _stripe(centre[1], width, side)[:, None, :]
        images = tf.where(hole[..., None], tf.zeros((), images.dtype), images)
    images = to_float(images)
    if recipe.brightness or recipe.contrast:
        fold = tf.random.experimental.stateless_fold_in(seed, 2)
        added, grown = tf.unstack(tf.random.stateless_uniform((2, batch, 1, 1, 1), fold, -1, 1))
        mean = tf.reduce_mean(images, (1, 2, 3), keepdims=True)
        images = (images - mean) * (1 + recipe.contrast * grown) + mean + recipe.brightness * added
        images = tf.clip_by_value(images, 0, 1)
    return images


def _rotated(images, seed, degrees):
    """Turn each image about its centre by an angle of its own; what comes in from outside is 0."""
    batch, height, width, _ = images.shape
    angle = tf.random.stateless_uniform((batch,), seed, -degrees, degrees) * (math.pi / 180)
    sin, cos, x, y = tf.sin(angle), tf.cos(angle), (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(angle)
    transforms = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, zero, zero]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(transforms, 1),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
    )


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
    """The training step of one model under one recipe.

    Args:
        train: (images uint8 (batch, height, width, channels), labels int32 (batch,), learning_rate float32 (),
            seed int32 (2,)) -> (loss float32 (), accuracy float32 ()); updates the variables. The batch's shape is
            static. Not a tf.function: callers compile it as they need.
        predict: images uint8 (batch, height, width, channels) -> class numbers int32 (batch,), in inference mode.
        variables: every variable that the two functions read or write, the optimizer's included, in a fixed order.
        optimizer: its state is among the variables.
    """

    train: Callable
    predict: Callable
    variables: tuple[tf.Variable, ...]
    optimizer: keras.optimizers.Optimizer


def make_step(
    model: keras.Model, recipe: Recipe, teacher: keras.Model | None = None, class_weights: np.ndarray | None = None
) -> Step:
    """Make the training step of a model.

    Args:
        model: logits out.
        recipe: of the training.
        teacher: a net of the same classes; half of the loss is then the cross entropy with its softened probabilities
            (temperature 2). Source: Hinton et al., arXiv 1503.02531.
        class_weights: (classes,), weigh each image's cross entropy with its label; None: all 1.
    """
    optimizer = keras.optimizers.SGD(0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0, jit_compile=False)
    trainable = model.trainable_variables
    optimizer.build(trainable)
    decayed = [v.name.rsplit("/", 1)[-1].startswith(("kernel", "depthwise_kernel")) for v in trainable]
    classes = model.output_shape[-1]

    def train(images, labels, learning_rate, seed):
        seed = tf.random.experimental.stateless_fold_in(seed, 0)  # published nets saw these crops
        inputs = augment(images, seed, recipe)
        off = recipe.label_smoothing / classes
        targets = tf.one_hot(labels, classes, on_value=1 - recipe.label_smoothing + off, off_value=off)
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            if class_weights is not None:
                losses *= tf.gather(tf.constant(class_weights, losses.dtype), labels)
            loss = tf.reduce_mean(losses)
            if teacher is not None:
                soft = tf.nn.softmax(teacher(inputs, training=False) / TEMPERATURE)
                distance = tf.nn.softmax_cross_entropy_with_logits(soft, logits / TEMPERATURE)
                loss = 0.5 * loss + 0.5 * TEMPERATURE**2 * tf.reduce_mean(distance)
        found, decay = zip(tape.gradient(loss, trainable), trainable, decayed), recipe.weight_decay
        gradients = [g + decay * v if is_decayed else g for g, v, is_decayed in found]
        optimizer.learning_rate.assign(learning_rate)
        optimizer.apply_gradients(zip(gradients, trainable))
        accuracy = tf.reduce_mean(tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32))
        return loss, accuracy

    def predict(images):
        return tf.argmax(model(to_float(images), training=False), -1, tf.int32)

    return Step(train, predict, (*model.variables, *optimizer.variables, optimizer.learning_rate), optimizer)


def batches(
    split: Split, recipe: Recipe, phase: str, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (images, labels, seed) for each step of an epoch, the same for the same recipe, phase and epoch.

    The order differs from epoch to epoch, and the last images that fill no batch are left out.
    """
    random = np.random.default_rng((recipe.seed, PHASES.index(phase), epoch))
    order = random.permutation(len(split))
    for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        seed = random.integers(0, 2**31, 2, dtype=np.int32)
        yield split.images[chosen], split.labels[chosen], seed


def compiled_step(step: Step) -> Callable:
    """Compile a step: a function of a batch as NumPy arrays, (images, labels, learning rate, seed) -> (loss, accuracy)."""
    run = tf.function(step.train)

    def call(images, labels, rate, seed):
        return run(tf.constant(images), tf.constant(labels), tf.constant(rate, tf.float32), tf.constant(seed))

    return call


def batchnorm_estimator(model: keras.Model, split: Split, recipe: Recipe) -> Callable[[], None]:
    """Compile a function that sets mean and variance of every trainable BatchNorm to those over training images.

    BatchNorm's own moving averages lag if an epoch has few steps and the rate is high: after three epochs of 20 steps on
    digits, nets of 63 to 75 % test accuracy showed 39 to 59 %. So the float phase estimates the statistics again before each
    epoch's validation, from the first 2,048 training images, augmented and batched as in training. After a longer training
    both give the same (55.8 % after five epochs of 93 steps on CIFAR-10 (JPEG)). Float training itself does not depend on
    these statistics.

    Args:
        model: float model of stock layers whose BatchNorms normalise the last axis.
        split: training images, at least a batch of them.
        recipe: batch size and augmentation.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    if not norms:
        return lambda: None
    probe = keras.Model(model.inputs, [norm.input for norm in norms])

    @tf.function
    def moments(images, seed):
        inputs = tf.nest.flatten(probe(augment(images, seed, recipe), training=True))
        return [tf.nn.moments(x, list(range(x.shape.rank - 1))) for x in inputs]

    def estimate():
        size = recipe.batch_size
        images = split.images[: max(BATCHNORM_IMAGES, size)]
        means, squares = [], []
        for i in range(len(images) // size):
            batch = tf.constant(images[i * size :][:size])
            pairs = [np.stack(pair).astype(np.float64) for pair in moments(batch, tf.constant([recipe.seed, i]))]
            means.append([mean for mean, _ in pairs])
            squares.append([variance + mean**2 for mean, variance in pairs])
        for norm, mean, square in zip(norms, zip(*means), zip(*squares)):
            mean, square = np.mean(mean, 0), np.mean(square, 0)
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(np.maximum(square - mean**2, 0))

    return estimate


def train_epoch(
    run: Callable, split: Split, recipe: Recipe, phase: str, epoch: int, *, callbacks=None, last_saved: str = ""
) -> dict[str, float]:
    """Train one epoch of a phase; give the "learning_rate" of its last step, and its mean "loss" and "accuracy".

    Args:
        run: from `compiled_step`.
        split: training images; those that fill no batch are left out.
        recipe: order, augmentation and learning rates.
        phase: "float" or "qat".
        epoch: from 0.
        callbacks: a Keras CallbackList, called at each step.
        last_saved: text for the error, on the epoch before.

    Raises:
        DivergedError: a step's loss is not finite.
    """
    epochs, peak, warmup_epochs = _schedule(recipe, phase)
    steps = len(split) // recipe.batch_size
    callbacks = callbacks or keras.callbacks.CallbackList()
    losses, accuracies, rate = [], [], 0.0
    schedule = {"steps": epochs * steps, "warmup_steps": round(warmup_epochs * steps), "peak": peak}
    for i, (images, labels, seed) in enumerate(batches(split, recipe, phase, epoch)):
        callbacks.on_train_batch_begin(i)
        rate = learning_rate_at(epoch * steps + i, **schedule)
        loss, hit = (float(value) for value in run(images, labels, rate, seed))
        if not math.isfinite(loss):
            raise diverged(f"the loss is {loss} at step {i + 1} of {phase} epoch {epoch + 1}", last_saved)
        losses.append(loss)
        accuracies.append(hit)
        callbacks.on_train_batch_end(i, {"loss": loss, "accuracy": hit})
    return {"learning_rate": rate, "loss": float(np.mean(losses)), "accuracy": float(np.mean(accuracies))}


def diverged(what: str, last_saved: str = "") -> DivergedError:
    """Make the error of a training that diverged: what was seen, and what is kept."""
    return DivergedError(f"training diverged: {what}; {last_saved}use a lower learning rate in a new folder")


def _schedule(recipe, phase):
    """(epochs, peak learning rate, epochs of warm-up) of a phase."""
    if phase == "float":
        return recipe.epochs, recipe.learning_rate, recipe.warmup_epochs
    return recipe.qat_epochs, recipe.qat_learning_rate, 0


@dataclass
class TrainingLoop:
    """The training loop of a run, with one call of `fit` for each phase, and the checkpoint that it continues from.

    Args:
        folder: of the run, for checkpoint.npz and history.csv.
        title: the net's name in progress lines.
        dataset, recipe, callbacks: as for `train`.
        progress: shows lines and bars.
        teacher: as for `make_step`.
        keep: called with phase and model after each epoch with the best validation accuracy of its phase so far; or None.
    """

    folder: Path
    title: str
    dataset: Dataset
    recipe: Recipe
    callbacks: tuple
    progress: Progress
    teacher: keras.Model | None = None
    keep: Callable[[str, keras.Model], None] | None = None
    history: list[dict] = field(init=False)
    _checkpoint: Checkpoint | None = field(init=False)

    def __post_init__(self):
        path = self.folder / CHECKPOINT_FILE
        self._checkpoint = read_checkpoint(path) if path.exists() else None
        self.history = list(self._checkpoint.history) if self._checkpoint else []

    def resumes(self, phase: str) -> bool:
        """Whether the checkpoint that the run continues from is of this phase or a later one."""
        return self._checkpoint is not None and PHASES.index(self._checkpoint.phase) >= PHASES.index(phase)

    def fit(self, phase: str, model: keras.Model) -> None:
        """Train a model to the end of a phase, "float" or "qat", from the checkpoint if it is of that phase.

        Raises:
            DivergedError: the loss or a weight is not finite, or an epoch's loss is far above that of guessing.
            OSError: the folder cannot be written.
        """
        warn_without_native_gradient(model)
        recipe, split, weights = self.recipe, self.dataset.train, None
        epochs = _schedule(recipe, phase)[0]
        if recipe.class_weights == "balanced":
            weights = balanced_weights(split.labels, self.dataset.num_classes)
        step = make_step(model, recipe, self.teacher, weights)
        first = self._restore(phase, step)
        run = compiled_step(step)
        estimate = batchnorm_estimator(model, split, recipe) if phase == "float" else None
        steps = len(split) // recipe.batch_size
        model.optimizer = step.optimizer  # where callbacks look for it
        advance = keras.callbacks.LambdaCallback(on_batch_end=lambda _, logs: self.progress.step(loss=logs["loss"]))
        told = [*self.callbacks, advance]
        callbacks = keras.callbacks.CallbackList(told, model=model, epochs=epochs, steps=steps, verbose=0)
        model.stop_training = False
        callbacks.on_train_begin()
        for epoch in range(first, epochs):
            callbacks.on_epoch_begin(epoch)
            start, saved = time.perf_counter(), self._last_saved()
            self.progress.bar(f"{self.title} {phase} epoch {epoch + 1}/{epochs}", steps)
            done = train_epoch(run, split, recipe, phase, epoch, callbacks=callbacks, last_saved=saved)
            if estimate is not None:
                with np.errstate(all="ignore"):
                    estimate()
            _check_finite(done["loss"], model, f"{phase} epoch {epoch + 1}", saved)
            row = {"phase": phase, "epoch": epoch + 1, **done, "val_accuracy": accuracy(model, self.dataset.validation)}
            row["seconds"] = round(time.perf_counter() - start, 2)
            best = max((past["val_accuracy"] for past in self.history if past["phase"] == phase), default=-1)
            if self.keep is not None and row["val_accuracy"] > best:
                self.keep(phase, model)
            self.history.append(row)
            path = self.folder / CHECKPOINT_FILE
            write_checkpoint(path, phase=phase, epoch=epoch + 1, history=self.history, variables=step.variables)
            write_csv(self.folder / HISTORY_FILE, self.history)
            self.progress.epoch(self.title, row, epochs)
            callbacks.on_epoch_end(epoch, {k: row[k] for k in ("loss", "accuracy", "val_accuracy", "learning_rate")})
            if model.stop_training:
                break
        callbacks.on_train_end()

    def _restore(self, phase, step) -> int:
        """Restore the checkpoint if it is of the phase; give the number of epochs of the phase that are done."""
        if self._checkpoint is not None and self._checkpoint.phase == phase:
            self._checkpoint.restore(step.variables)
            return self._checkpoint.epoch
        if self.resumes(phase):  # what the later phase went on from is gone: both start anew
            self._checkpoint = None
        self.history = [row for row in self.history if PHASES.index(row["phase"]) < PHASES.index(phase)]
        return 0

    def _last_saved(self) -> str:
        if not self.history:
            return "no epoch was finished: "
        last = self.history[-1]
        return f"{last['phase']} epoch {last['epoch']} stays in {self.folder / CHECKPOINT_FILE}: "


def _check_finite(loss, model, epoch, last_saved):
    guessing = math.log(model.output_shape[-1])
    if loss > DIVERGED_LOSS * guessing:
        raise diverged(f"the mean loss of {epoch} is {loss:.3g}; guessing has {guessing:.3g}", last_saved)
    for variable in model.variables:
        if not np.isfinite(variable.numpy()).all():
            raise diverged(f"{variable.name} is not finite after {epoch}", last_saved)
