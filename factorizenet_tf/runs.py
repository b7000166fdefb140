"""A training's folder: the names of its files, the run that it belongs to, its checkpoint; a finished one is a `Run`."""

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .classes import class_rows, matrix_from_text
from .data import Dataset
from .files import atomic_write, remove_partial_files, write_csv, write_text
from .recipe import Recipe, recipe_from_json
from .spec import ModelSpec, spec_from_json
from .tflite.int8_model import Int8Model

__all__ = ["IN_MEMORY", "Checkpoint", "Run", "dataset_fingerprint", "load_run", "not_finished", "open_folder"]
__all__ += ["open_run_folder", "read_checkpoint", "write_checkpoint", "write_metrics"]

SPEC_FILE = "spec.json"
RECIPE_FILE = "recipe.json"
DATASET_FILE = "dataset.json"
INITIAL_FILE = "initial.json"
TABLE_FILE = "table.csv"  # a model's factorization table, by which a search goes; written before the rest
START_FILE = "start.h5"  # weights that a factorized net's tuning starts from; written before the rest
CHECKPOINT_FILE = "checkpoint.npz"
HISTORY_FILE = "history.csv"
FLOAT_FILE = "float.h5"
QAT_FILE = "qat.h5"
TFLITE_FILE = "model.tflite"
METRICS_FILE = "metrics.json"
CLASSES_FILE = "classes.csv"
CONFUSION_FILE = "confusion.svg"
HISTORY_FIGURE = "history.svg"
BEST_FILES = {"float": "float_best.h5", "qat": "qat_best.h5"}  # by phase: its epoch of the best validation accuracy
NET_FILES = (FLOAT_FILE, QAT_FILE, TFLITE_FILE, *BEST_FILES.values())
IN_MEMORY = "a model in memory"  # metrics.json's `initial` where a training started from no file


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and what was measured.

    Args:
        folder: with the files that this module names.
        spec: the net.
        recipe: how it was trained.
        metrics: metrics.json as a dict: accuracies (0..1) on validation and test by precision, agreement, cost.
    """

    folder: Path
    spec: ModelSpec
    recipe: Recipe
    metrics: dict

    def float_model(self):
        """Load the float tf_keras model with its trained weights."""
        from .models.weights import load_model

        return load_model(self.folder / FLOAT_FILE, spec=self.spec, precision="float")

    def qat_model(self):
        """Load the quantization-aware tf_keras model with its trained weights."""
        from .models.weights import load_model

        return load_model(self.folder / QAT_FILE, spec=self.spec, precision="int8")

    def int8_model(self, *, threads: int = 1) -> Int8Model:
        """Load the int8 .tflite on LiteRT."""
        return Int8Model(self.folder / TFLITE_FILE, threads=threads)

    def history(self) -> list[dict]:
        """Read one dict an epoch: phase, epoch, learning_rate, loss, accuracy, val_accuracy, seconds."""
        return read_checkpoint(self.folder / CHECKPOINT_FILE).history


def load_run(folder) -> Run:
    """Load the finished run in a folder.

    Raises:
        FileNotFoundError: there is none, or it is not finished.
        ValueError: one of its files is damaged.
    """
    folder = Path(folder)
    path = folder / METRICS_FILE
    if not path.is_file():
        raise not_finished(folder, METRICS_FILE)
    spec = spec_from_json((folder / SPEC_FILE).read_text())
    recipe = recipe_from_json((folder / RECIPE_FILE).read_text())
    try:
        return Run(folder, spec, recipe, json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and train again to have it written anew") from None


def write_metrics(folder: Path, metrics: dict) -> None:
    """Write classes.csv (a line for each split and class), confusion.svg, history.svg and, as a run's last file, metrics.json.

    Without the extra `report` there are no figures. Raises OSError as `write_text`.
    """
    rows = []
    for split, texts in metrics.get("confusion", {}).items():
        names = json.loads((folder / DATASET_FILE).read_text())["class_names"]
        matrices = {net: matrix_from_text(text) for net, text in texts.items()}
        rows += [{"split": split} | row for row in class_rows(matrices, names)]
        last = {f"{net}, {split}": matrix for net, matrix in matrices.items()}
    if rows:
        write_csv(folder / CLASSES_FILE, rows)
    with contextlib.suppress(ModuleNotFoundError):
        from .plots import confusion_figure, history_figure

        if rows:
            confusion_figure(last, names, folder / CONFUSION_FILE)
        if (folder / HISTORY_FILE).is_file():
            history_figure(folder / HISTORY_FILE, folder / HISTORY_FIGURE)
    write_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")


def not_finished(folder: Path, missing: str) -> FileNotFoundError:
    """Make the error for a run's folder that lacks a file."""
    if (folder / SPEC_FILE).is_file():
        remedy = "it was begun: give the command that began it again, and it goes on after its last whole epoch"
    else:
        remedy = "give a folder that `factorizenet train` wrote"
    return FileNotFoundError(f"no finished run in {folder}: it has no {missing}; {remedy}")


def open_run_folder(
    folder: Path,
    dataset: Dataset,
    recipe: Recipe,
    spec_json: str,
    initial: str | None = None,
    teacher: str | None = None,
    freeze: int = 0,
) -> None:
    """Record in a new folder which run it belongs to, or check that an existing one belongs to this run.

    Args:
        folder: of the run.
        dataset, recipe: of the training.
        spec_json: the net.
        initial: fingerprint of the weights that the training starts from; None: random ones.
        teacher: fingerprint of the net that it learns from, or None.
        freeze: how many stages keep their weights.

    Raises:
        ValueError: the folder holds another run (every difference is named) or other files.
        OSError: it cannot be made or written.
    """
    start = {"weights": initial} | ({"teacher": teacher} if teacher else {}) | ({"freeze": freeze} if freeze else {})
    texts = {
        SPEC_FILE: spec_json,
        RECIPE_FILE: recipe.to_json(),
        DATASET_FILE: dataset_fingerprint(dataset),
        INITIAL_FILE: json.dumps(start, indent=2) + "\n",
    }
    if initial is not None and (folder / SPEC_FILE).exists() and not (folder / INITIAL_FILE).exists():
        difference = "it started from random weights, you gave weights to start from"
        remedy = "choose a new one or give the same arguments"
        raise ValueError(f"the folder {folder} holds another run ({difference}); {remedy}")
    open_folder(folder, texts, "run")


def open_folder(folder: Path, texts: dict[str, str], what: str) -> None:
    """Write into a new folder the JSON files, by name, that say what it is for, or check that those there say the same.

    Raises:
        ValueError: the folder is for something else (every difference is named), holds other files or a damaged one.
        OSError: it cannot be made or written.
    """
    remove_partial_files(folder)
    own = {START_FILE, TABLE_FILE}  # written before the rest
    present = sorted(name for name in texts if (folder / name).exists())
    if not present and folder.exists() and any(folder.iterdir()) and not any((folder / name).exists() for name in own):
        raise ValueError(f"the folder {folder} holds other files and no {what}; choose a new one")
    differences = []
    for name in present:
        try:
            saved, given = json.loads((folder / name).read_text()), json.loads(texts[name])
        except ValueError:
            raise ValueError(f"{folder / name} is damaged; restore it, or choose a new folder") from None
        differences += [
            f"{name.removesuffix('.json')}.{key}: the folder has {saved.get(key)}, you gave {given.get(key)}"
            for key in sorted({*saved, *given})
            if saved.get(key) != given.get(key)
        ]
    if differences:
        more = [line for line in differences if not re.match(r"recipe\.(qat_)?epochs:", line)]
        if not more and (folder / METRICS_FILE).exists():
            differences.append(f"it is finished: for more epochs train from it, --from {folder}, into a new folder")
        found, remedy = "; ".join(differences), "choose a new one or give the same arguments"
        raise ValueError(f"the folder {folder} holds another {what} ({found}); {remedy}")
    for name in reversed(texts):  # initial.json first: a folder without it is an older run's, from random weights
        if name not in present:
            write_text(folder / name, texts[name])


def dataset_fingerprint(dataset: Dataset) -> str:
    """Describe a data set as JSON: name, title, classes, counts, and a SHA-256 over all images and labels."""
    fields = {
        "name": dataset.name,
        "title": dataset.title,
        "class_names": list(dataset.class_names),
        "images": {name: len(split) for name, split in dataset.splits.items()},
        "sha256": dataset.sha256,
    }
    fields |= {"reading": dataset.reading} if dataset.reading else {}
    return json.dumps(fields, indent=2) + "\n"


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after an epoch.

    Args:
        phase: "float" or "qat".
        epoch: number of the last whole epoch in this phase, from 1.
        history: a dict for each epoch so far, of both phases.
        arrays: the values of all variables.
    """

    phase: str
    epoch: int
    history: list[dict]
    arrays: list[np.ndarray]

    def restore(self, variables: Sequence) -> None:
        """Assign the arrays to the variables that they were taken from.

        Raises:
            ValueError: number or shapes differ.
        """
        shapes, wanted = [a.shape for a in self.arrays], [tuple(v.shape) for v in variables]
        if shapes != wanted:
            held = f"{len(shapes)} variables of another model or optimizer"
            raise ValueError(f"the checkpoint holds {held}; {len(wanted)} are needed")
        for variable, array in zip(variables, self.arrays):
            variable.assign(array)


def write_checkpoint(path: Path, *, phase: str, epoch: int, history: list[dict], variables: Sequence) -> None:
    """Replace the checkpoint by the present state; the old one stays until the new one is whole."""
    meta = json.dumps({"phase": phase, "epoch": epoch, "history": history})
    arrays = {f"v{i}": v.numpy() for i, v in enumerate(variables)}
    with atomic_write(path) as aside, open(aside, "wb") as file:
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
        remedy = "delete it to train this run from its start"
        raise ValueError(f"the checkpoint {path} is damaged ({error}); {remedy}") from None
