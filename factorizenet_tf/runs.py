"""A training's folder: what is in it, and whose it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .data import Dataset
from .files import remove_asides, write_text, written_aside
from .recipe import Recipe, recipe_from_json
from .spec import ModelSpec, spec_from_json
from .tflite.int8_model import Int8Model

__all__ = [
    "CHECKPOINT_FILE",
    "IN_MEMORY",
    "Checkpoint",
    "Run",
    "check_folder",
    "claim",
    "claim_folder",
    "dataset_identity",
    "load_run",
    "read_checkpoint",
    "write_checkpoint",
]

CHECKPOINT_FILE = "checkpoint.npz"
IN_MEMORY = "a model in memory"  # metrics.json's `initial` where a training started from no file


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
        from .models.build import build
        from .models.weights import load_weights

        model = build(self.spec)
        load_weights(model, self.folder / "float.h5", spec=self.spec)
        return model

    def qat_model(self):
        """The quantization-aware tf_keras model with its trained weights."""
        from .models.build import build
        from .models.quantize import quantize_aware
        from .models.weights import load_weights

        model = quantize_aware(build(self.spec))
        load_weights(model, self.folder / "qat.h5", spec=self.spec, precision="int8")
        return model

    def int8_model(self, *, threads: int = 1) -> Int8Model:
        """The int8 .tflite on LiteRT."""
        return Int8Model(self.folder / "model.tflite", threads=threads)

    def history(self) -> list[dict]:
        """One dict an epoch: phase, epoch, learning_rate, loss, accuracy, val_accuracy, seconds."""
        return read_checkpoint(self.folder / CHECKPOINT_FILE).history


def load_run(folder) -> Run:
    """The finished run in a folder.

    Raises:
        FileNotFoundError: there is none, or it is not finished.
        ValueError: one of its files is damaged.
    """
    folder = Path(folder)
    if not (folder / "metrics.json").is_file():
        raise FileNotFoundError(
            f"no finished run in {folder}: it has no metrics.json; `factorizenet train` writes it last"
        )
    spec = spec_from_json((folder / "spec.json").read_text())
    recipe = recipe_from_json((folder / "recipe.json").read_text())
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
    except ValueError as error:
        raise ValueError(
            f"{folder / 'metrics.json'} is damaged ({error}); delete it and train again to have it written anew"
        ) from None
    return Run(folder, spec, recipe, metrics)


def claim(folder: Path, dataset: Dataset, recipe: Recipe, spec_json: str, initial: str | None = None) -> None:
    """Make the folder this run's own, or find that it is.

    Args:
        folder: of the run.
        dataset, recipe, spec_json: what it is.
        initial: fingerprint of the weights it starts from; None: random ones.

    Raises:
        ValueError: it holds another run (every difference is named) or other files.
        OSError: it cannot be made or written.
    """
    texts = {
        "spec.json": spec_json,
        "recipe.json": recipe.to_json(),
        "dataset.json": dataset_identity(dataset),
        "initial.json": json.dumps({"weights": initial}, indent=2) + "\n",
    }
    differences = []
    if (folder / "spec.json").exists() and not (folder / "initial.json").exists() and initial is not None:
        differences.append("it started from random weights there, from given ones now")
    claim_folder(folder, texts, "run", differences)


def claim_folder(folder: Path, texts: dict[str, str], what: str, differences: Sequence[str] = ()) -> None:
    """Write the JSON files that say what a folder is of, or find that they are there and say the same.

    Of several processes that share a folder one claims it, the others `check_folder`.

    Args:
        folder: made where it is not there.
        texts: content by file name.
        what: "run" or "search", for messages.
        differences: found already.

    Raises:
        ValueError: it is of another one (every difference is named) or holds other files.
        OSError: it cannot be made or written.
    """
    remove_asides(folder)
    present = {name for name in texts if (folder / name).exists()}
    if not present and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"the folder {folder} holds other files and no {what}; choose a new one")
    check_folder(folder, {name: text for name, text in texts.items() if name in present}, what, differences)
    for name in reversed(texts):  # initial.json first: a folder without it is an older run's, from random weights
        if name not in present:
            write_text(folder / name, texts[name])


def check_folder(folder: Path, texts: dict[str, str], what: str, differences: Sequence[str] = ()) -> None:
    """Find that the JSON files in a folder say what `claim_folder` would write. The arguments are as there.

    Raises:
        ValueError: it is of another one (every difference is named), or a file is damaged or missing.
    """
    differences = list(differences)
    for name in sorted(texts):
        try:
            there, now = json.loads((folder / name).read_text()), json.loads(texts[name])
        except FileNotFoundError:
            raise ValueError(f"{folder} holds no {what}: {name} is missing; give the {what}'s own folder") from None
        except ValueError:
            raise ValueError(f"{folder / name} is damaged; restore it, or choose a new folder") from None
        keys = sorted({*there, *now})
        differences += [
            f"{name.removesuffix('.json')}.{k} is {there.get(k)} there, {now.get(k)} now"
            for k in keys
            if there.get(k) != now.get(k)
        ]
    if differences:
        raise ValueError(
            f"the folder {folder} holds another {what} ({'; '.join(differences)}); choose a new one or give the same arguments"
        )


def dataset_identity(dataset: Dataset) -> str:
    """What a data set is, as JSON: names, counts, and a hash over all images and labels."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(np.ascontiguousarray(split.images))
        digest.update(split.labels)
    fields = {
        "name": dataset.name,
        "title": dataset.title,
        "class_names": list(dataset.class_names),
        "images": {s: len(getattr(dataset, s)) for s in ("train", "validation", "test")},
        "sha256": digest.hexdigest(),
    }
    return json.dumps(fields, indent=2) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """State after a whole epoch.

    Args:
        phase: "float" or "qat".
        epoch: epochs of the phase that are done.
        history: one dict an epoch, of all phases so far.
        arrays: the values of the step's variables, in order.
    """

    phase: str
    epoch: int
    history: list[dict]
    arrays: list[np.ndarray]

    def restore(self, variables: Sequence) -> None:
        """Assign the arrays to the variables they were taken from.

        Raises:
            ValueError: number or shapes differ.
        """
        shapes = [a.shape for a in self.arrays]
        wanted = [tuple(v.shape) for v in variables]
        if shapes != wanted:
            raise ValueError(
                f"the checkpoint holds {len(shapes)} variables of another model or optimizer; {len(wanted)} are needed"
            )
        for variable, array in zip(variables, self.arrays):
            variable.assign(array)


def write_checkpoint(path: Path, *, phase: str, epoch: int, history: list[dict], variables: Sequence) -> None:
    """Replace the checkpoint by the present state; the old one stays until the new one is whole."""
    meta = json.dumps({"phase": phase, "epoch": epoch, "history": history})
    arrays = {f"v{i}": v.numpy() for i, v in enumerate(variables)}
    with written_aside(path) as aside, open(aside, "wb") as file:
        np.savez(file, meta=np.array(meta), **arrays)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: the file is truncated or damaged; the message says what to do.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            arrays = [file[f"v{i}"] for i in range(len(file.files) - 1)]
        return Checkpoint(meta["phase"], meta["epoch"], meta["history"], arrays)
    except Exception as error:  # zipfile and NumPy's header each raise many kinds on damaged bytes
        raise ValueError(
            f"the checkpoint {path} is damaged ({error}); delete it to train this run from its start"
        ) from None
