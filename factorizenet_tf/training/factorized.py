"""Prepare the tuning of a factorized net: keep its fitted weights, which another fit might not repeat, and label images."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._keras import keras
from ..data import Dataset, load_dataset
from ..data.images import IMAGE_ENDINGS, decoded
from ..files import remove_partial_files, write_text
from ..models.architecture import architecture_of
from ..models.build import build
from ..models.evaluate import logits
from ..models.keras3 import quantizable
from ..models.quantize import wrap_for_qat
from ..models.weights import load_model, save_weights
from ..runs import START_FILE
from ..spec import Architecture

__all__ = ["begin", "check_free", "check_tunable", "labelled_by", "load_begun", "shown_command"]

COMMAND_FILE = "start.json"


def check_free(folder: Path) -> None:
    """Raise ValueError if a folder holds files, those of a killed `begin` excepted."""
    if folder.exists():
        remove_partial_files(folder)
        if any(path.name != COMMAND_FILE for path in folder.iterdir()):
            raise ValueError(f"the folder {folder} holds other files and no run; choose a new one")


def check_tunable(model: keras.Model, name: str, is_quantized: bool) -> None:
    """Raise ValueError if a net has a layer that `train` cannot build or QAT cannot quantize, before it is factorized."""
    spec = architecture_of(quantizable(model), name)
    if is_quantized:
        wrap_for_qat(build(spec))


def begin(folder: Path, model: keras.Model, spec: Architecture, command: str, shown: str | None = None) -> None:
    """Save the weights that a tuning starts from, its command, and the one for cards where that is another.

    Raises ValueError as `check_free`, and OSError.
    """
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    commands = {"command": command} | ({} if shown in (None, command) else {"shown": shown})
    write_text(folder / COMMAND_FILE, json.dumps(commands, indent=2) + "\n")
    save_weights(model, folder / START_FILE, spec=spec, precision="float")


def shown_command(folder: Path) -> str:
    """Give the command of a begun tuning for cards. Raises ValueError as `load_begun`."""
    commands = _commands(folder)
    return commands.get("shown", commands["command"])


def _commands(folder) -> dict[str, str]:
    try:
        commands = json.loads((folder / COMMAND_FILE).read_text())
        return {"command": commands["command"], **commands}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / COMMAND_FILE} is damaged or missing ({error}); choose a new folder") from None


def load_begun(folder: Path, command: str) -> keras.Model:
    """Load the model that a tuning started from. Raises ValueError if another command, which is named, began it."""
    begun = _commands(folder)["command"]
    if begun != command:
        raise ValueError(f"the folder {folder} was begun by `{begun}`; give that command, or a new folder")
    return load_model(folder / START_FILE, precision="float")


def labelled_by(
    model: keras.Model, folder: str | os.PathLike, *, class_names: Sequence[str] | None = None, resize: str = "stretch"
) -> Dataset:
    """Read images without labels and label each with the class that a net predicts, to tune that net's factorized form.

    Accuracies on these data are agreement with the net, as their title says.

    Args:
        model: float tf_keras model, images in 0..1 in, logits out.
        folder: of images, its subfolders included; all are read into memory at the model's size.
        class_names: of the model's outputs; None: their numbers.
        resize: as for `load_dataset`.

    Raises:
        FileNotFoundError: there is no folder.
        ValueError: it has fewer than 4 images, or one is broken, which is named.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give one of images")
    paths = sorted(str(path) for path in root.rglob("[!.]*") if path.suffix.lower() in IMAGE_ENDINGS)
    if len(paths) < 4:
        raise ValueError(f"{root} has {len(paths)} images ({', '.join(sorted(IMAGE_ENDINGS))}); give at least 4")
    chunks = []
    for images, _, broken in decoded(paths, model.input_shape[1:], resize):
        for message in broken.values():
            raise ValueError(message)
        chunks.append(images)
    images = np.concatenate(chunks)
    names = [str(number) for number in range(model.output_shape[-1])] if class_names is None else class_names
    data = load_dataset((images, logits(model, images).argmax(1)), class_names=names)
    title = f"{root.resolve().name}, labelled by {model.name}"
    return dataclasses.replace(data, title=title, reading={"resize": resize})
