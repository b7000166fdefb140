"""What can be analysed: models, names of the zoo, runs and files, each with the data that it goes with."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from . import zoo as zoo_module
from ._keras import functional_model, keras
from .data import Dataset, load_dataset
from .int8 import Int8Model
from .own import load_any
from .quantize import is_quantize_aware
from .run import Run, load_run
from .spec import ModelSpec

__all__ = ["Subject", "subject_of"]

FILES = (".h5", ".hdf5", ".keras", ".tflite")


@dataclass(frozen=True, eq=False)
class Subject:
    """A net to analyse.

    Args:
        name: in the tables.
        models: by source: "float", "qat", or both, the float one first.
        spec: of ours, else None.
        dataset: what it was trained on; None where that is not known.
        dataset_name: what `load_dataset` takes for it; None where that is not known.
        dataset_title: its data as it is; None where that is not known.
        tflite: the int8 file that goes with it; None where there is none.
    """

    name: str
    models: dict[str, keras.Model]
    spec: ModelSpec | None
    dataset: Dataset | None
    dataset_name: str | None = None
    tflite: Int8Model | None = None
    dataset_title: str | None = None

    def note_other_data(self, dataset: Dataset) -> None:
        """Warn where the data of the same name that is here is other than what the net was trained on."""
        if self.dataset_title not in (None, dataset.title):
            warnings.warn(
                f"{self.name}: the data here is {dataset.title}, it was trained on {self.dataset_title}; its accuracies "
                "here do not compare with the published ones",
                RuntimeWarning,
                stacklevel=3,
            )


def subject_of(model_or_name, *, dataset: Dataset | None = None, zoo_dir=None, needs_data: bool = True) -> Subject:
    """The net that a caller named.

    Args:
        model_or_name: as for `analyze`.
        dataset: its data where the caller has it loaded; else it is loaded where `needs_data`.
        zoo_dir: where names are looked up.
        needs_data: whether data is wanted that was not given.

    Raises:
        FileNotFoundError, ValueError, TypeError: as `zoo.load`, `load_run`, `load_any` and `load_dataset`.
    """
    if isinstance(model_or_name, Subject):
        return model_or_name
    if isinstance(model_or_name, Run):
        return _run(model_or_name, dataset, needs_data)
    if not isinstance(model_or_name, (str, os.PathLike)):
        model = functional_model(model_or_name, "the analysis")
        return Subject(model.name, {_source(model): model}, None, dataset)
    path = Path(model_or_name)
    if (path / "metrics.json").is_file() and (path / "float.h5").is_file():
        return _run(load_run(path), dataset, needs_data)
    if path.exists():
        model = load_any(path)
        if not isinstance(model, keras.Model):
            raise ValueError(f"{path} is a .tflite, which has no layers to fold; give its run's folder or its qat.h5")
        return Subject(path.stem, {_source(model): model}, None, dataset)
    if path.suffix in FILES or len(path.parts) > 1:
        raise FileNotFoundError(f"no model at {path}; give a name of the zoo, a run's folder, a .h5 or a .keras file")
    return _published(str(model_or_name), dataset, zoo_dir, needs_data)


def _run(run, dataset, needs_data):
    models = {"float": run.float_model()}
    if (run.folder / "qat.h5").is_file():
        models["qat"] = run.qat_model()
    name = json.loads((run.folder / "dataset.json").read_text())["name"]
    if dataset is None and needs_data:
        if name == "arrays":
            raise ValueError(f"{run.folder} was trained on arrays; give calibration and evaluation, or dataset")
        dataset = load_dataset(name, input_shape=run.spec.input_shape)
    tflite = run.int8_model() if (run.folder / "model.tflite").is_file() else None
    return Subject(run.spec.name, models, run.spec, dataset, None if name == "arrays" else name, tflite)


def _published(name, dataset, zoo_dir, needs_data):
    card = zoo_module.card(name, zoo_dir=zoo_dir)
    models, tflite = {}, None
    if card.precision == "int8":
        sibling = f"{card.name.removesuffix('-int8')}-float@{card.version}"  # of the same training
        if any(other.reference == sibling for other in zoo_module.list(all_versions=True, zoo_dir=zoo_dir)):
            models["float"] = zoo_module.load(sibling, zoo_dir=zoo_dir)
        models["qat"] = zoo_module.load(name, zoo_dir=zoo_dir)
        tflite = zoo_module.load(name, format="tflite", zoo_dir=zoo_dir)
    else:
        models["float"] = zoo_module.load(name, zoo_dir=zoo_dir)
    subject = Subject(name, models, card.spec, dataset, card.dataset_name, tflite, card.dataset)
    if dataset is None and needs_data:
        dataset = load_dataset(card.dataset_name, input_shape=card.spec.input_shape)
        subject.note_other_data(dataset)
    return replace(subject, dataset=dataset)


def _source(model) -> str:
    return "qat" if is_quantize_aware(model) else "float"
