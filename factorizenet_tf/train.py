"""The main job: from a spec and a data set to float, quantization-aware and int8 models, resumable at each epoch."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .checkpoint import read_checkpoint, write_checkpoint
from .convert import to_tflite
from .data import Dataset
from .evaluate import accuracy, agreement
from .files import write_bytes, write_text
from .int8 import Int8Model
from .model import build
from .quantize import quantize_aware
from .recipe import Recipe, learning_rate_at, recipe_for
from .spec import ModelSpec
from .step import make_step
from .weights import load_weights, save_weights

__all__ = ["NanLossError", "Run", "train"]

AGREEMENT_IMAGES = 1_000


class NanLossError(ArithmeticError):
    """The loss became NaN or infinite; the last good checkpoint is kept and nothing after it was written."""


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and what was measured.

    Args:
        folder: holds spec.json, recipe.json, dataset.json, history.csv, float.h5, qat.h5, model.tflite, metrics.json
            and checkpoint.npz.
        spec: the net.
        recipe: how it was trained.
        metrics: metrics.json as a dict: accuracies (0..1) on validation and test by precision, agreement, cost.
    """

    folder: Path
    spec: ModelSpec
    recipe: Recipe
    metrics: dict

    def float_model(self):
        """The float tf_keras model with its trained weights."""
        model = build(self.spec)
        load_weights(model, self.folder / "float.h5", spec=self.spec)
        return model

    def qat_model(self):
        """The quantization-aware tf_keras model with its trained weights."""
        model = quantize_aware(build(self.spec))
        load_weights(model, self.folder / "qat.h5", spec=self.spec, precision="int8")
        return model

    def int8_model(self, *, threads: int = 1) -> Int8Model:
        """The int8 .tflite on LiteRT."""
        return Int8Model(self.folder / "model.tflite", threads=threads)

    def history(self) -> list[dict]:
        """One dict an epoch: phase, epoch, learning_rate, loss, accuracy, val_accuracy, seconds."""
        return read_checkpoint(self.folder / "checkpoint.npz").history


def train(
    spec: ModelSpec,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    callbacks: Sequence = (),
    strategy=None,
    verbose: bool = True,
) -> Run:
    """Train a net in float, fine-tune it quantization-aware, convert it to int8, and evaluate all of them.

    Called again with the same arguments it goes on after the last whole epoch, or gives the finished run.

    Args:
        spec: the net; its input shape and classes must be the data's.
        dataset: from `load_dataset(..., input_shape=spec.input_shape)`.
        out: the run's folder; made where it is not there.
        recipe: None for the data set's own, `recipe_for(dataset.name)`.
        callbacks: tf_keras callbacks. They see both phases, each with epochs from 0; logs have loss, accuracy,
            val_accuracy and learning_rate. `model.stop_training = True` ends the phase.
        strategy: a tf.distribute strategy whose replicas share each batch; None for one device.
        verbose: print a line an epoch, and a bar on a terminal.

    Raises:
        ValueError: spec, data, recipe or strategy do not fit each other, the folder holds another run (the difference
            is named) or a damaged checkpoint.
        OSError: the folder cannot be written or the disk is full; what was there stays whole.
        NanLossError: the loss is no longer finite.
    """
    from .cost import count_macs, count_params
    from .progress import Progress

    recipe = recipe or recipe_for(dataset.name)
    _check(spec, dataset, recipe, strategy)
    folder = Path(out)
    _claim(folder, spec, dataset, recipe)
    if (folder / "metrics.json").exists():
        return Run(folder, spec, recipe, json.loads((folder / "metrics.json").read_text()))
    with Progress(verbose) as progress:
        session = _Session(folder, spec, dataset, recipe, tuple(callbacks), strategy, progress)
        float_model = session.float_phase()
        qat_model = session.qat_phase(float_model) if recipe.qat_epochs else None
        calibration = dataset.calibration(recipe.calibration_images)
        models = {"float": float_model}
        for name, per_channel in (("ptq_per_tensor", False), ("ptq_per_channel", True)):
            progress.say(f"quantizing after training, {name[4:].replace('_', ' ')}")
            content = to_tflite(float_model, calibration=calibration, per_channel=per_channel, labels=dataset.class_names)
            models[name] = Int8Model(content)
        if qat_model is not None:
            models["qat"] = qat_model
            content = to_tflite(qat_model, labels=dataset.class_names)
        write_bytes(folder / "model.tflite", content)
        models["tflite"] = Int8Model(content)
        accuracies = {}
        for split in ("validation", "test"):
            progress.say(f"evaluating on {split}")
            accuracies[split] = {name: accuracy(model, getattr(dataset, split)) for name, model in models.items()}
        metrics = {
            "name": spec.name,
            "dataset": dataset.title,
            "images": {split: len(getattr(dataset, split)) for split in ("train", "validation", "test")},
            "accuracy": accuracies,
            "macs": count_macs(spec if isinstance(spec, ModelSpec) else float_model),
            "params": count_params(spec if isinstance(spec, ModelSpec) else float_model),
            "size_bytes": len(content),
            "operators": sorted(set(models["tflite"].operators)),
            "tensor_types": sorted(models["tflite"].tensor_types),
            "training_seconds": round(sum(row["seconds"] for row in session.history), 1),
        }
        if qat_model is not None:
            images = dataset.test.images[:AGREEMENT_IMAGES]
            metrics["agreement"] = dataclasses.asdict(agreement(qat_model, models["tflite"], images))
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return Run(folder, spec, recipe, metrics)


def _check(spec, dataset, recipe, strategy):
    if tuple(dataset.image_shape) != tuple(spec.input_shape):
        raise ValueError(f"the images are {dataset.image_shape}, the net takes {spec.input_shape}; load the data with input_shape={spec.input_shape}")
    if dataset.num_classes != spec.num_classes:
        raise ValueError(f"{dataset.title} has {dataset.num_classes} classes, the net {spec.num_classes}; use num_classes={dataset.num_classes}")
    if recipe.batch_size > len(dataset.train):
        raise ValueError(f"batch_size is {recipe.batch_size}, the training images are {len(dataset.train)}; use at most that many")
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise ValueError(f"batch_size {recipe.batch_size} is no multiple of the strategy's {replicas} replicas")


def _claim(folder, spec, dataset, recipe):
    """Make the folder this run's own, or find that it is."""
    texts = {
        "spec.json": spec.to_json(),
        "recipe.json": recipe.to_json(),
        "dataset.json": json.dumps(_identity(dataset), indent=2) + "\n",
    }
    present = {name for name in texts if (folder / name).exists()}
    if not present and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"the folder {folder} holds other files and no run; choose a new one")
    differences = []
    for name in sorted(present):
        try:
            there, now = json.loads((folder / name).read_text()), json.loads(texts[name])
        except ValueError:
            raise ValueError(f"{folder / name} is damaged; restore it, or choose a new folder") from None
        keys = sorted({*there, *now})
        differences += [f"{name.removesuffix('.json')}.{k} is {there.get(k)} there, {now.get(k)} now" for k in keys if there.get(k) != now.get(k)]
    if differences:
        raise ValueError(f"the folder {folder} holds another run ({'; '.join(differences)}); choose a new one or give the same arguments")
    for name in texts.keys() - present:
        write_text(folder / name, texts[name])


def _identity(dataset):
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(np.ascontiguousarray(split.images))
        digest.update(split.labels)
    return {
        "name": dataset.name,
        "title": dataset.title,
        "class_names": list(dataset.class_names),
        "images": {s: len(getattr(dataset, s)) for s in ("train", "validation", "test")},
        "sha256": digest.hexdigest(),
    }


@dataclass
class _Session:
    """One call of `train`: the two phases over a shared history and checkpoint."""

    folder: Path
    spec: ModelSpec
    dataset: Dataset
    recipe: Recipe
    callbacks: tuple
    strategy: object
    progress: object

    def __post_init__(self):
        from ._keras import tf

        if self.strategy is None:
            self.strategy = tf.distribute.get_strategy()
        path = self.folder / "checkpoint.npz"
        self.checkpoint = read_checkpoint(path) if path.exists() else None
        self.history = list(self.checkpoint.history) if self.checkpoint else []

    def float_phase(self):
        from ._keras import keras

        keras.utils.set_random_seed(self.recipe.seed)
        path = self.folder / "float.h5"
        with self.strategy.scope():
            model = build(self.spec)
        if path.exists():
            load_weights(model, path, spec=self.spec)
        else:
            self._fit("float", model, self.recipe.epochs, self.recipe.learning_rate, self.recipe.warmup_epochs)
            save_weights(model, path, spec=self.spec, precision="float")
        return model

    def qat_phase(self, float_model):
        path = self.folder / "qat.h5"
        started = path.exists() or (self.checkpoint is not None and self.checkpoint.phase == "qat")
        calibration = None if started else self.dataset.calibration(self.recipe.calibration_images)
        self.progress.say("inserting fake quantization")
        with self.strategy.scope():
            model = quantize_aware(float_model, calibration=calibration)
        if path.exists():
            load_weights(model, path, spec=self.spec, precision="int8")
        else:
            self._fit("qat", model, self.recipe.qat_epochs, self.recipe.qat_learning_rate, 0)
            save_weights(model, path, spec=self.spec, precision="int8")
        return model

    def _fit(self, phase, model, epochs, peak, warmup_epochs):
        """Train to the phase's end, from the checkpoint where it is of this phase."""
        from ._keras import keras

        with self.strategy.scope():
            step = make_step(model, self.recipe)
        first = 0
        if self.checkpoint is not None and self.checkpoint.phase == phase:
            self.checkpoint.restore(step.variables)
            first = self.checkpoint.epoch
        compiled = _compiled(step, self.strategy, self.recipe.batch_size)
        steps = len(self.dataset.train) // self.recipe.batch_size
        model.optimizer = step.optimizer  # where callbacks look for it
        callbacks = keras.callbacks.CallbackList(list(self.callbacks), model=model, epochs=epochs, steps=steps, verbose=0)
        model.stop_training = False
        callbacks.on_train_begin()
        for epoch in range(first, epochs):
            callbacks.on_epoch_begin(epoch)
            start = time.perf_counter()
            losses, hits = [], []
            bar = self.progress.bar(f"{self.spec.name} {phase} epoch {epoch + 1}/{epochs}", steps)
            for i, (images, labels, seed) in enumerate(batches(self.dataset.train, self.recipe, phase, epoch)):
                callbacks.on_train_batch_begin(i)
                rate = learning_rate_at(epoch * steps + i, steps=epochs * steps, warmup_steps=round(warmup_epochs * steps), peak=peak)
                loss, hit = (float(v) for v in compiled(images, labels, rate, seed))
                if not math.isfinite(loss):
                    raise NanLossError(
                        f"the loss is {loss} at step {i + 1} of {phase} epoch {epoch + 1}; epoch {epoch} stays in "
                        f"{self.folder / 'checkpoint.npz'}: use a lower learning rate in a new folder"
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
            write_checkpoint(self.folder / "checkpoint.npz", phase=phase, epoch=epoch + 1, history=self.history, variables=step.variables)
            write_text(self.folder / "history.csv", _csv(self.history))
            self.progress.epoch(self.spec.name, row, epochs)
            callbacks.on_epoch_end(epoch, {k: row[k] for k in ("loss", "accuracy", "val_accuracy", "learning_rate")})
            if model.stop_training:
                break
        callbacks.on_train_end()


def batches(split, recipe: Recipe, phase: str, epoch: int):
    """(images, labels, seed) of each step of an epoch: the same for the same seed, phase and epoch.

    The last images that fill no batch are left out; the order is another one each epoch.
    """
    random = np.random.default_rng((recipe.seed, ("float", "qat").index(phase), epoch))
    order = random.permutation(len(split))
    for start in range(0, len(order) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        seed = random.integers(0, 2**31, 2, dtype=np.int32)
        yield split.images[chosen], split.labels[chosen], seed


def _compiled(step, strategy, batch_size):
    """The step over all replicas as one function of the whole batch: (loss, accuracy)."""
    from ._keras import tf

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


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
