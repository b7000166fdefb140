"""A user's own tf_keras model: loaded from a file, quantized after or with training, evaluated."""

from __future__ import annotations

import json
import os
import re
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from . import zoo
from . import zoo as zoo_module
from ._keras import functional_model, keras
from .data import Dataset, load_dataset
from .files import write_bytes
from .models.build import build
from .models.convert import write_saved_model
from .models.quantize import is_quantize_aware, quantize_aware
from .models.weights import is_weights_file, load_weights, read_header
from .runs import Run, load_run
from .spec import ModelSpec, ResNet8, spec_from_json
from .tflite.int8_model import Int8Model
from .tflite.io_types import check_io, with_uint8_io
from .tflite.latency import LatencyTable
from .tflite.metadata import with_metadata
from .tflite.regroup import Regrouping, check_regroup, compare, regroup_fastest

__all__ = [
    "ServedNet",
    "Subject",
    "TfliteExport",
    "check_name",
    "export_saved_model",
    "export_tflite",
    "int8_content",
    "int8_file",
    "load_any",
    "load_float",
    "model_name",
    "served_net",
    "spec_of",
    "subject_of",
]


def load_any(path: str | os.PathLike):
    """The model in a file: an Int8Model (.tflite), one of our weights files rebuilt, or a whole tf_keras model.

    Args:
        path: a name of the zoo where no such file exists; .tflite; float.h5 or qat.h5 of a run; a run's folder (its
            .tflite); .keras, .h5 or a SavedModel's folder that tf_keras wrote. No Python code in a file is run: a Lambda
            layer is refused.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: what is there is damaged or no image classifier.
    """
    path = Path(path)
    if zoo.is_published(path):
        return zoo.load(str(path), "tflite" if str(path).endswith("-int8") else "keras")
    if (path / "model.tflite").is_file():
        path = path / "model.tflite"
    if not path.exists():
        raise FileNotFoundError(
            f"no model at {path}; give a .tflite, .h5 or .keras file, a run's folder, or a name of `factorizenet list`"
        )
    if path.suffix == ".tflite":
        return Int8Model(path)
    if _is_ours(path):
        spec, precision = read_header(path)
        model = build(spec)
        if precision == "int8":
            model = quantize_aware(model)
        load_weights(model, path, spec=spec, precision=precision)
        return model
    if _saved_by(path).startswith("3."):
        raise ValueError(
            f"{path} was saved by Keras {_saved_by(path)}; TFMOT needs a tf_keras model: build it with `import tf_keras`, "
            "set its weights and save that"
        )
    from tf_keras.src.saving.serialization_lib import SafeModeScope

    try:
        with SafeModeScope(True):  # load_model's own safe_mode is for .keras files alone
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # each format raises its own
        reason = str(error).strip().partition("\n")[0][:200]
        if "Lambda layer" in reason:
            raise _lambda_error(path) from None
        raise ValueError(
            f"{path} is no model that tf_keras can load ({reason}); save it with tf_keras as .keras or .h5"
        ) from None
    functional_model(model, "loading")
    if any(type(layer).__name__ == "Lambda" for layer in model.submodules):
        raise _lambda_error(path)
    taken, given = model.input_shape, model.output_shape
    is_classifier = isinstance(taken, tuple) and len(taken) == 4 and isinstance(given, tuple) and len(given) == 2
    if not is_classifier or None in taken[1:] or taken[3] not in (1, 3):
        raise ValueError(
            f"{path} takes {taken} and gives {given}; it must take images (batch, height, width, channels) of a fixed size "
            "with 1 or 3 channels and give (batch, classes)"
        )
    return model


def load_float(source: str | os.PathLike) -> keras.Model:
    """A float tf_keras model to start from: a -float name of the zoo, a run's folder, float.h5 or a whole model.

    Raises:
        FileNotFoundError, ValueError: as `load_any`, or the model is int8.
    """
    folder = Path(source)
    model = load_any(folder / "float.h5" if (folder / "float.h5").is_file() else folder)
    if isinstance(model, Int8Model) or is_quantize_aware(model):
        raise ValueError(f"{source} is int8; training starts from a float model, e.g. fnet-l2-float or a run's folder")
    return model


def spec_of(source: str | os.PathLike) -> ModelSpec | ResNet8:
    """The spec of a name of the zoo, a run's folder, or a weights file that `train` wrote.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: it is damaged, or a model without a spec.
    """
    if zoo.is_published(source):
        return zoo.card(str(source)).spec
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no model at {source}; give a run's folder, float.h5, or a name of `factorizenet list`"
        )
    return read_header(path / "float.h5" if path.is_dir() else path)[0]


def _is_ours(path) -> bool:
    try:
        return is_weights_file(path)
    except OSError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy or save the model again") from None


def _saved_by(path) -> str:
    """The version of Keras that a .keras or .h5 file says it was saved by, or ""."""
    import h5py

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                return json.loads(file.read("metadata.json"))["keras_version"]
        with h5py.File(path, "r") as file:
            return file.attrs.get("keras_version", "")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return ""


def _lambda_error(path) -> ValueError:
    return ValueError(f"{path} has a Lambda layer, whose code is not run from a file; replace it by stock layers")


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


PRECISIONS = ("int8", "float")
RUN_FILES = ("float.h5", "qat.h5", "model.tflite")


@dataclass(frozen=True, eq=False)
class ServedNet:
    """A net as it is put on a server.

    Args:
        name: what clients call it.
        precision: "int8" or "float".
        model: tf_keras model, images in 0..1 in, logits out; fake-quantized where the precision is "int8".
        tflite: the true int8 model's bytes; None for float.
        labels: class names by number.
    """

    name: str
    precision: str
    model: object
    tflite: bytes | None
    labels: tuple[str, ...]


def served_net(
    source: str | os.PathLike, *, name: str | None = None, precision: str | None = None, labels=None
) -> ServedNet:
    """Load a source for serving.

    Args:
        source: a name of the zoo, a run's folder, float.h5 or qat.h5, or a tf_keras model's file.
        name: for clients; None takes the zoo's, or the spec's with its precision.
        precision: of a run's folder, "int8" unless said; another source has its own.
        labels: class names; None takes the source's, or numbers where it has none.

    Raises:
        FileNotFoundError: there is nothing at the source.
        ValueError: it is damaged or a .tflite, a name that cannot be served, labels that do not agree with the classes,
            or a precision that the source has not.
    """
    from .models.quantize import is_quantize_aware

    if precision not in (None, *PRECISIONS):
        raise ValueError(f"precision is {precision!r}; it must be int8 or float")
    path, called = Path(source), name or model_name(source)
    if zoo.is_published(source):
        model = zoo.load(str(source), "keras")
    else:
        if path.is_dir() and (path / "float.h5").is_file():
            precision = precision or "int8"
            path = path / ("qat.h5" if precision == "int8" else "float.h5")
            called = name or f"{called.removesuffix('-int8')}-{precision}"
        model = load_any(path)
    if not hasattr(model, "layers"):
        raise ValueError(f"{source} is a .tflite; a SavedModel is made from a run's folder or its .h5 files")
    own = "int8" if is_quantize_aware(model) else "float"
    if precision not in (None, own):
        raise ValueError(f"{source} is {own}; it cannot be served as {precision}")
    tflite = None
    if own == "int8":
        tflite = int8_content(_run_of(path) or source)
    classes = int(model.output_shape[-1])
    labels = tuple(labels or source_labels(source) or map(str, range(classes)))
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes; give one name a class")
    return ServedNet(check_name(called), own, model, tflite, labels)


def check_name(name: str) -> str:
    """A name where it can be a folder and a part of an address.

    Raises:
        ValueError: it has a slash, a space or another character that cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"the name {name!r} cannot be served; use letters, digits, dots, hyphens and underscores, e.g. fnet-l2-int8"
        )
    return name


def source_labels(source: str | os.PathLike) -> tuple[str, ...] | None:
    """The class names that come with a source; None where there are none."""
    from .tflite.int8_model import Int8Model

    if zoo.is_published(source):
        return zoo.card(str(source)).class_names
    folder = _run_of(Path(source))
    try:
        if folder is not None:
            return tuple(json.loads((folder / "dataset.json").read_text())["class_names"])
    except (OSError, ValueError, KeyError):  # the .tflite has them, too
        pass
    file = int8_file(source)
    return Int8Model(file).labels if file.suffix == ".tflite" else None


def _run_of(path: Path) -> Path | None:
    """The run's folder that a path is, or is a file of; None where it is none."""
    if path.name in RUN_FILES and path.is_file():
        path = path.parent
    return path if (path / "spec.json").is_file() and (path / "model.tflite").is_file() else None


DESCRIPTION = "An int8 image classifier written by factorizenet_tf."


@dataclass(frozen=True)
class TfliteExport:
    """A written .tflite.

    Args:
        path: of the file.
        size_bytes: its length.
        net: the net in it, int8 in and out whatever the file's types are.
        regrouping: the choice for each grouped convolution; None where it was not regrouped.
    """

    path: Path
    size_bytes: int
    net: bytes
    regrouping: Regrouping | None

    def row(self) -> dict:
        """File, bytes and `net`'s median latency on this machine: LiteRT with XNNPACK, batch 1, one thread.

        Where it was regrouped: bytes, RAM and latency beside the plain net's instead (`regroup.compare`).
        """
        row = {"file": str(self.path), "bytes": self.size_bytes}
        if self.regrouping is not None:
            return row | compare(self.regrouping.plain, self.regrouping.content)
        return row | {"latency_ms": round(Int8Model(self.net).latency_ms().median_ms, 4)}


def int8_file(source: str | os.PathLike) -> Path:
    """The file that holds a source's int8 net: a .tflite, or what one can be converted from."""
    folder = Path(source)
    if zoo.is_published(source):
        folder = zoo.load(str(source), "path")
    return folder / "model.tflite" if (folder / "model.tflite").is_file() else folder


def int8_content(source: str | os.PathLike) -> bytes:
    """The int8 .tflite of a run, a name of the zoo, a .tflite or a qat.h5.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: it is damaged, or a float model, which needs calibration images (`factorizenet quantize`).
    """
    file = int8_file(source)
    if file.suffix == ".tflite":
        Int8Model(file)  # a damaged file is not passed on
        return file.read_bytes()
    from .models.convert import to_tflite
    from .models.quantize import is_quantize_aware

    model = load_any(file)
    if not is_quantize_aware(model):
        raise ValueError(f"{source} is a float model; `factorizenet quantize` makes it int8 with calibration images")
    return to_tflite(model)


def model_name(source: str | os.PathLike) -> str:
    """What a source is called where it is used: its name in the zoo, its spec's for a run, else the file's.

    Letters, digits, dots, hyphens and underscores only, so that it can be a folder and a part of an address.
    """
    path = Path(source)
    if not path.exists():
        return str(source)
    if (path / "spec.json").is_file():
        try:
            return f"{spec_from_json((path / 'spec.json').read_text()).name}-int8"
        except ValueError:  # a model of one's own
            pass
    return (
        re.sub(r"[^\w.-]+", "-", path.resolve().stem if path.is_file() else path.resolve().name).strip("-.") or "model"
    )


def export_tflite(
    source: str | os.PathLike,
    path: str | os.PathLike,
    *,
    regroup: str = "none",
    latencies: LatencyTable | None = None,
    io: str = "int8",
) -> TfliteExport:
    """Write the int8 .tflite of a source, as `int8_content` takes it, with metadata and labels.

    Args:
        source: what to export.
        path: the file.
        regroup: "none", or "fastest": the number of groups that runs fastest, by `regroup_fastest`.
        latencies: for regroup="fastest": the table measured on the target; None measures here.
        io: type of input and output, "int8" or "uint8".

    Raises:
        FileNotFoundError, ValueError: as `int8_content`, or an argument is another.
        FileExistsError: `path` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    check_regroup(regroup, latencies)
    check_io(io)
    plain = int8_content(source)
    regrouping = regroup_fastest(plain, latencies) if regroup == "fastest" else None
    net = plain if regrouping is None else regrouping.content
    content = with_metadata(
        with_uint8_io(net) if io == "uint8" else net, name=model_name(source), description=DESCRIPTION
    )
    write_bytes(path, content)
    return TfliteExport(path, len(content), net, regrouping)


def export_saved_model(source: str | os.PathLike, folder: str | os.PathLike) -> int:
    """Write a SavedModel with the signature `image` float32 (batch, height, width, channels) in 0..1 -> `logits`.

    Args:
        source: a run's folder (its float model), a name of the zoo, float.h5, qat.h5 or a tf_keras model. Grouped
            convolutions in it are TensorFlow's native ones, not XLA's.
        folder: new; written aside and renamed.

    Returns:
        The bytes of all its files.

    Raises:
        FileNotFoundError, ValueError: as `own.load_any`.
        FileExistsError: `folder` is there already.
    """
    folder, source = Path(folder), Path(source)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another name or remove it")
    if zoo.is_published(source):
        model = zoo.load(str(source), "keras")
    else:
        model = load_any(source / "float.h5" if (source / "float.h5").is_file() else source)
    if isinstance(model, Int8Model):
        raise ValueError(f"{source} is a .tflite; a SavedModel is made from a run's folder or its .h5 files")
    return write_saved_model(model, folder)
