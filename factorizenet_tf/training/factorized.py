"""The start of a factorized net's tuning, kept in its run's folder: a fit done again may differ in its last bits."""

from __future__ import annotations

import json
from pathlib import Path

from .._keras import keras
from ..files import remove_partial_files, write_text
from ..models.weights import load_model, save_weights
from ..runs import START_FILE
from ..spec import Architecture

__all__ = ["begin", "check_free", "load_begun"]

COMMAND_FILE = "start.json"


def check_free(folder: Path) -> None:
    """Raise ValueError where a folder holds other files than a start that was killed leaves."""
    if folder.exists():
        remove_partial_files(folder)
        if any(path.name != COMMAND_FILE for path in folder.iterdir()):
            raise ValueError(f"the folder {folder} holds other files and no run; choose a new one")


def begin(folder: Path, model: keras.Model, spec: Architecture, command: str) -> None:
    """Keep what a tuning starts from, and the command that made it. Raises ValueError as `check_free`, and OSError."""
    check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / COMMAND_FILE, json.dumps({"command": command}, indent=2) + "\n")
    save_weights(model, folder / START_FILE, spec=spec, precision="float")


def load_begun(folder: Path, command: str) -> keras.Model:
    """Load what a tuning started from. Raises ValueError where another command began it, which is named."""
    try:
        begun = json.loads((folder / COMMAND_FILE).read_text())["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / COMMAND_FILE} is damaged or missing ({error}); choose a new folder") from None
    if begun != command:
        raise ValueError(f"the folder {folder} was begun by `{begun}`; give that command, or a new folder")
    return load_model(folder / START_FILE, precision="float")
