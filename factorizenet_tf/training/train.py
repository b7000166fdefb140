"""The main job: from a spec and a data set to float, quantization-aware and int8 models, resumable at each epoch."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .._keras import keras, tf
from ..console import Progress
from ..cost import count_macs, count_params
from ..data import Dataset
from ..files import write_bytes, write_text
from ..loading import Source, resolve
from ..machine import machine, versions
from ..models.build import build
from ..models.convert import to_tflite
from ..models.evaluate import accuracy, agreement
from ..models.quantize import quantize_aware
from ..models.weights import copy_weights, fingerprint, load_weights, save_weights
from ..recipe import Recipe, recipe_for
from ..runs import IN_MEMORY, Run, load_run, open_run_folder
from ..spec import ModelSpec
from ..tflite.int8_model import Int8Model
from .loop import Trainer

__all__ = ["check_data", "train"]

AGREEMENT_IMAGES = 1_000


def train(
    spec: ModelSpec,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    initial: str | os.PathLike | Source | keras.Model | None = None,
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
        initial: fine-tuning: what `loading.resolve` takes, e.g. "fnet-l2-float" of the zoo: a float model of the same layers,
            whose weights it starts from; the head starts anew where the classes are of another number. Also such a model
            itself, the same at each call. None: random weights.
        callbacks: tf_keras callbacks. They see both phases, each with epochs from 0; logs have loss, accuracy,
            val_accuracy and learning_rate. `model.stop_training = True` ends the phase.
        strategy: a tf.distribute strategy whose replicas share each batch; None for one device.
        verbose: print a line an epoch, and a bar on a terminal.

    Raises:
        ValueError: spec, data, recipe, strategy or initial weights do not fit each other, the folder holds another run (the difference
            is named) or a damaged checkpoint.
        OSError: the folder cannot be written or the disk is full; what was there stays whole.
        NanLossError: the loss is no longer finite.
    """
    recipe = recipe or recipe_for(dataset.name)
    _check(spec, dataset, recipe, strategy)
    folder = Path(out)
    source = None if initial is None else resolve(initial)
    start = None if source is None else source.float_model()
    if start is not None:
        copy_weights(start, build(spec))  # what does not fit shows before anything is written
    open_run_folder(folder, dataset, recipe, spec.to_json(), None if start is None else fingerprint(start))
    if (folder / "metrics.json").exists():
        return load_run(folder)
    with Progress(verbose) as progress:
        trainer = Trainer(
            folder, spec.name, dataset, recipe, tuple(callbacks), strategy or tf.distribute.get_strategy(), progress
        )
        float_model = _float_phase(trainer, spec, start)
        qat_model = _qat_phase(trainer, spec, float_model) if recipe.qat_epochs else None
        calibration = dataset.calibration(recipe.calibration_images)
        models = {"float": float_model}
        for name, per_channel in (("ptq_per_tensor", False), ("ptq_per_channel", True)):
            progress.say(f"quantizing after training, {name[4:].replace('_', ' ')}")
            content = to_tflite(
                float_model, calibration=calibration, per_channel=per_channel, labels=dataset.class_names
            )
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
            "macs": count_macs(float_model),
            "params": count_params(float_model),
            "size_bytes": len(content),
            "operators": sorted(set(models["tflite"].operators)),
            "tensor_types": sorted(models["tflite"].tensor_types),
            "initial": IN_MEMORY if isinstance(initial, keras.Model) else source and source.given,
            "machine": machine(),
            "versions": versions(),
            "training_seconds": round(sum(row["seconds"] for row in trainer.history), 1),
        }
        if qat_model is not None:
            images = dataset.test.images[:AGREEMENT_IMAGES]
            metrics["agreement"] = dataclasses.asdict(agreement(qat_model, models["tflite"], images))
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return Run(folder, spec, recipe, metrics)


def check_data(spec, dataset: Dataset) -> None:
    """Raise ValueError where a net and a data set differ in image size or number of classes."""
    if tuple(dataset.image_shape) != tuple(spec.input_shape):
        raise ValueError(
            f"the images are {dataset.image_shape}, the net takes {spec.input_shape}; load the data with input_shape={spec.input_shape}"
        )
    if dataset.num_classes != spec.num_classes:
        raise ValueError(
            f"{dataset.title} has {dataset.num_classes} classes, the net {spec.num_classes}; use num_classes={dataset.num_classes}"
        )


def _check(spec, dataset, recipe, strategy):
    check_data(spec, dataset)
    if recipe.batch_size > len(dataset.train):
        raise ValueError(
            f"batch_size is {recipe.batch_size}, the training images are {len(dataset.train)}; use at most that many"
        )
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    if recipe.batch_size % replicas:
        raise ValueError(f"batch_size {recipe.batch_size} is no multiple of the strategy's {replicas} replicas")


def _float_phase(trainer, spec, start):
    keras.utils.set_random_seed(trainer.recipe.seed)
    path = trainer.folder / "float.h5"
    with trainer.strategy.scope():
        model = build(spec)
    if path.exists() and trainer.checkpoint:  # without a checkpoint the run starts anew, its history too
        load_weights(model, path, spec=spec)
    else:
        if start is not None:
            copy_weights(start, model)
        trainer.fit("float", model)
        save_weights(model, path, spec=spec, precision="float")
    return model


def _qat_phase(trainer, spec, float_model):
    path = trainer.folder / "qat.h5"
    begun = trainer.has_begun("qat")
    calibration = None if begun else trainer.dataset.calibration(trainer.recipe.calibration_images)
    trainer.progress.say("inserting fake quantization")
    with trainer.strategy.scope():
        model = quantize_aware(float_model, calibration=calibration)
    if path.exists() and begun:
        load_weights(model, path, spec=spec, precision="int8")
    else:
        trainer.fit("qat", model)
        save_weights(model, path, spec=spec, precision="int8")
    return model
