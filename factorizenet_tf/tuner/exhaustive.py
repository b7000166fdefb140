"""Training every net of a space, one after the other in one process, for the accuracy after each epoch alone."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .._keras import keras, tf
from ..data import Dataset, Split
from ..files import locked, write_csv
from ..models.build import build
from ..recipe import Recipe, learning_rate_at
from ..spec import ModelSpec
from ..training.loop import NanLossError, batches, compiled_step, make_step
from .space import macs

__all__ = ["add_row", "curve", "fresh", "missing", "part_of", "read_rows"]

CHUNK = 500  # validation images a prediction
LOCK_SECONDS = 60  # a row takes milliseconds


def fresh(spec: ModelSpec, seed: int) -> keras.Model:
    """A net with random weights of a seed; frees what was built before."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    return build(spec)


def curve(model: keras.Model, dataset: Dataset, recipe: Recipe) -> Iterator[tuple[float, float]]:
    """Train a model in float as `train` does, without files; gives (validation accuracy 0..1, seconds) of each epoch.

    Raises:
        NanLossError: the loss is no longer finite.
    """
    step = make_step(model, recipe)
    run = compiled_step(step, tf.distribute.get_strategy(), recipe.batch_size)
    predict = tf.function(step.predict)
    steps = len(dataset.train) // recipe.batch_size
    for epoch in range(recipe.epochs):
        start, losses = time.perf_counter(), []
        for i, (images, labels, seed) in enumerate(batches(dataset.train, recipe, "float", epoch)):
            rate = learning_rate_at(
                epoch * steps + i,
                steps=recipe.epochs * steps,
                warmup_steps=round(recipe.warmup_epochs * steps),
                peak=recipe.learning_rate,
            )
            losses.append(run(images, labels, rate, seed)[0])
        if not np.isfinite(float(tf.reduce_sum(losses))):
            raise NanLossError(
                f"the loss of {model.name} is not finite in epoch {epoch + 1}; use a lower learning rate"
            )
        yield _accuracy(predict, dataset.validation), time.perf_counter() - start


def part_of(dataset: Dataset, images: int, validation: int) -> Dataset:
    """A data set with its first so many training and validation images (their order was shuffled once)."""

    def first(split, count):
        return Split(split.images[:count], split.labels[:count])

    return dataclasses.replace(
        dataset, train=first(dataset.train, images), validation=first(dataset.validation, validation)
    )


def missing(nets: list[ModelSpec], path: Path, seed: int, part: int, parts: int) -> list[ModelSpec]:
    """This process's part of the nets, without those that the table has with this seed."""
    there = {(row["name"], int(row["seed"])) for row in read_rows(path)}
    return [net for net in nets[part::parts] if (net.name, seed) not in there]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none where there is no file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def add_row(path: Path, spec: ModelSpec, recipe: Recipe, epochs: list[tuple[float, float]]) -> None:
    """Put a net's row into the table, whole or not at all; several processes may do so.

    Raises:
        OSError: the table cannot be written.
        ValueError: it has another number of epochs.
    """
    row = {
        "name": spec.name,
        "level": ".".join(map(str, spec.levels)),
        "seed": str(recipe.seed),
        "macs": str(macs(spec)),
        "seconds": f"{sum(seconds for _, seconds in epochs):.1f}",
        **{f"epoch_{number}": f"{accuracy:.4f}" for number, (accuracy, _) in enumerate(epochs, 1)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock"), LOCK_SECONDS):
        rows = [r for r in read_rows(path) if (r["name"], r["seed"]) != (row["name"], row["seed"])]
        if rows and rows[0].keys() != row.keys():
            raise ValueError(f"{path} has rows of {len(rows[0]) - 5} epochs, not {len(epochs)}; give another file")
        write_csv(path, sorted([*rows, row], key=lambda r: (int(r["seed"]), -int(r["macs"]), r["name"])))


def _accuracy(predict, split: Split) -> float:
    hits = 0
    for start in range(0, len(split), CHUNK):
        images = tf.constant(split.images[start : start + CHUNK])
        hits += int(np.sum(predict(images).numpy() == split.labels[start : start + CHUNK]))
    return hits / len(split)
