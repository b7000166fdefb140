"""Find the net that a user named: `resolve` takes a name, a run's folder, a file or a model, and gives a `Source`.

Every command and function that takes a net asks here, so that one text is the same net everywhere. TensorFlow is imported
only where a Keras model is loaded, or an int8 net is asked for that stands nowhere as a .tflite.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .data import Dataset, is_folder, load_dataset
from .pixels import Pixels
from .runs import DATASET_FILE, FLOAT_FILE, METRICS_FILE, NET_FILES, QAT_FILE, SPEC_FILE, TFLITE_FILE, Run, not_finished
from .spec import ModelSpec, ResNet8, spec_from_json
from .tflite.int8_model import Int8Model, TFLiteModel
from .zoo.cards import Card
from .zoo.catalog import find
from .zoo.store import FolderStore, UrlStore

if TYPE_CHECKING:
    from ._keras import keras

__all__ = ["Source", "check_served_name", "named_source", "resolve"]

MODEL_FILES = (".tflite", ".h5", ".hdf5", ".keras")


def resolve(
    source: str | os.PathLike | Run | Source | keras.Model,
    *,
    zoo_dir: str | os.PathLike | None = None,
    pixels: Pixels | None = None,
    size: int | None = None,
) -> Source:
    """Find the net that a source names: the path if it exists, else the published model of that name.

    Args:
        source: a name of the zoo, "fnet-l2-int8", or one version of it, "fnet-l2-int8@1"; a folder that `train` or
            `quantize` wrote, or a `Run`; a .tflite; float.h5 or qat.h5 of a run; a tf_keras or Keras 3 model, its .keras or
            .h5 file or (tf_keras) its SavedModel's folder; a `Source`, which is given back.
        zoo_dir: the zoo, a folder or an http(s) address, where names are looked up; None: the package's own, and that of the
            environment variable FACTORIZENET_ZOO.
        pixels: what a user's own Keras model takes; None: pixels in 0..1, or what its own Rescaling layer expects.
        size: height and width in pixels of its images, if the model leaves them open.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file is damaged, there is no such name (near ones are offered) or version, or two zoos have
            different nets of that name; pixels or size for what is no Keras model of the user's; or as `from_keras3`.
        TypeError: it is an object of another kind.
        ConnectionError: `zoo_dir` cannot be fetched.
    """
    if not isinstance(source, Source):
        source = _resolved(source, zoo_dir, pixels, size)
    if source.kind != "keras" and (pixels is not None or size is not None):
        remedy = "pixel range and size are for a Keras model of your own: leave them out"
        raise ValueError(f"{source.given} has a fixed size and takes pixels in 0..1; {remedy}")
    return source


def _resolved(source, zoo_dir, pixels, size) -> Source:
    if isinstance(source, Run):
        return Source(str(source.folder), "run", path=source.folder)
    if not isinstance(source, (str, os.PathLike)):
        from .models.load import taken_in

        model = taken_in(source, pixels, size)
        return Source(model.name, "keras", memory=model)
    given, path = os.fspath(source), Path(source)
    if not given:
        raise ValueError("the net is '', an empty text; give a name of `factorizenet list`, a file or a folder")
    if path.is_dir():
        return Source(given, _kind_of_folder(path), path=path, pixels=pixels, size=size)
    if path.exists():
        return Source(given, _kind_of_file(path), path=path, pixels=pixels, size=size)
    if path.suffix.lower() in MODEL_FILES or len(path.parts) > 1:
        remedy = "give a .tflite, .h5 or .keras file, a run's folder, or a name of `factorizenet list`"
        raise FileNotFoundError(f"no model at {given}; {remedy}")
    try:
        card, store = find(given, zoo_dir)
    except ValueError as error:
        raise ValueError(f"there is no file or folder {given}, and {error}") from None
    return Source(given, "name", card=card, store=store)


def named_source(text: str) -> tuple[str | None, str]:
    """Split "name=source" into the two; a path that exists or has "=" in a folder's name is a source alone, its name None."""
    name, equals, source = text.partition("=")
    if not equals or Path(text).exists() or "/" in name or os.sep in name:
        return None, text
    return name or None, source


def check_served_name(name: str) -> str:
    """Return the name if it can be a folder's and a part of an address, and raise otherwise.

    Raises:
        ValueError: it has a slash, a space or another character that cannot.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        remedy = "use letters, digits, dots, hyphens and underscores, e.g. fnet-l2-int8"
        raise ValueError(f"the name {name!r} cannot be served; {remedy}")
    return name


@dataclass(frozen=True, eq=False)
class Source:
    """A net that a user named: what is known of it, and its models, which are loaded when they are asked for.

    Args:
        given: what the user wrote, for messages; of a model in memory its name.
        kind: "name" (of a zoo), "run" (a folder), "tflite", "weights" (float.h5, qat.h5) or "keras" (a Keras model of the user's).
        path: of the file or folder; None for a name and a model in memory.
        card: of a published model.
        store: the zoo that has it.
        memory: the tf_keras model itself, if the user gave one.
        run_precision: which of a run's nets is meant, "int8" or "float"; see `with_precision`.
        pixels, size: as for `resolve`.
    """

    given: str
    kind: str
    path: Path | None = None
    card: Card | None = None
    store: FolderStore | UrlStore | None = None
    memory: object = None
    run_precision: str = "int8"
    pixels: Pixels | None = None
    size: int | None = None

    @cached_property
    def name(self) -> str:
        """The net's own name: the zoo's without a version, fnet-l2-int8 for a run, else the file's.

        Only letters, digits, dots, hyphens and underscores, so that it can be a folder and a part of an address.
        """
        if self.card is not None:
            return self.card.name
        if self.spec is not None:
            return f"{self.spec.name}-{self.precision}"
        path = self.path.resolve() if self.path is not None else Path(self.given)
        text = path.name if self.path is None or self.path.is_dir() else path.stem
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "model"

    @property
    def reference(self) -> str:
        """What names exactly this net: the name with its version, fnet-l2-int8@1; else what was given."""
        return self.given if self.card is None else self.card.reference

    @property
    def zoo(self) -> str | None:
        """Folder or address of the zoo that a name is of."""
        return None if self.store is None else self.store.location

    @cached_property
    def spec(self) -> ModelSpec | ResNet8 | None:
        """What the net was built from; None for a model of the user's own.

        Raises:
            ValueError: the run's spec.json is damaged.
        """
        if self.card is not None:
            return self.card.spec
        if self.kind == "weights":
            return self._header[0]
        if self._run_folder is None:
            return None
        file = self._run_folder / SPEC_FILE
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            return None if json.loads(text).get("family") == "own" else spec_from_json(text)
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error}); restore it from a copy") from None

    @cached_property
    def precision(self) -> str:
        """Precision of the net: "float", or "int8" (its Keras model is then the quantization-aware one)."""
        if self.kind == "keras":
            from .models.quantize import is_quantize_aware

            return "int8" if is_quantize_aware(self._own_model) else "float"
        if self.kind == "weights":
            return self._header[1]
        return self.run_precision if self.card is None else self.card.precision

    @cached_property
    def labels(self) -> tuple[str, ...] | None:
        """Class names by number; None if they are not known."""
        if self.card is not None:
            return self.card.class_names
        if "class_names" in self._dataset:
            return tuple(self._dataset["class_names"])
        return None if self.tflite_file is None else Int8Model(self.tflite_file).labels

    @property
    def dataset_name(self) -> str | None:
        """Name by which `load_dataset` loads the data that the net was trained on; None for arrays, or if it is not known."""
        name = self._dataset.get("name") if self.card is None else self.card.dataset_name
        return None if name == "arrays" else name

    @property
    def reading(self) -> dict:
        """The options with which `load_dataset` read the data that the net was trained on: `Dataset.reading`."""
        return self._dataset.get("reading", {}) if self.card is None else self.card.reading

    def reading_of(self, dataset: str) -> dict:
        """The options with which `load_dataset` reads a data set for this net: `reading` for its own data, else `resize` alone."""
        is_own = is_folder(dataset) and Path(dataset).expanduser().resolve().name == self.dataset_title
        return self.reading if is_own or dataset == self.dataset_name else {"resize": self.resize}

    @property
    def resize(self) -> str:
        """How images of another aspect ratio are resized for the net: "stretch", "crop" or "pad"."""
        if self.kind != "tflite":
            return self.reading.get("resize", "stretch")
        return TFLiteModel(self.path, pixels=Pixels("0..1")).resize  # whatever its pixels are

    @property
    def dataset_title(self) -> str | None:
        """Title of the data that the net was trained on, e.g. "CIFAR-10 (JPEG)"; None if it is not known."""
        return self._dataset.get("title") if self.card is None else self.card.dataset

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images it takes."""
        if self.spec is not None:
            return tuple(self.spec.input_shape)
        return self.int8_model().input_shape if self.tflite_file is not None else tuple(self.model().input_shape[1:])

    @cached_property
    def tflite_file(self) -> Path | None:
        """The int8 .tflite of a -int8 name, a run or a .tflite; None for the others.

        Raises:
            FileNotFoundError: the run is not finished, or the zoo lacks the file.
            ValueError: the zoo's file is damaged.
        """
        if self.kind in ("weights", "keras") or self.precision != "int8":
            return None
        if self.card is not None:
            return self.store.path(self.card.file("tflite"))
        return self.path if self.kind == "tflite" else self._run_file(TFLITE_FILE)

    @property
    def sibling(self) -> Source | None:
        """Of a published model the one of the same training in the other precision; None if there is none."""
        if self.card is None:
            return None
        other = "float" if self.card.precision == "int8" else "int8"
        reference = f"{self.card.name.removesuffix(self.card.precision)}{other}@{self.card.version}"
        found = [card for card in self.store.cards() if card.reference == reference]
        return dataclasses.replace(self, given=reference, card=found[0]) if found else None

    def with_precision(self, precision: str | None) -> Source:
        """Choose a run's "float" or "int8" net; any other source has one precision, and None leaves it.

        Raises:
            ValueError: the source has another precision, or there is no such one.
        """
        if precision not in (None, "int8", "float"):
            raise ValueError(f"precision is {precision!r}; it must be int8 or float")
        if precision in (None, self.precision):
            return self
        if self.kind == "run":
            return dataclasses.replace(self, run_precision=precision)
        raise self._other_precision(precision)

    def float_model(self) -> keras.Model:
        """Load the float tf_keras model: images in 0..1 in, logits out.

        Raises:
            FileNotFoundError: the run has none yet.
            ValueError: the source is int8, or its file is damaged or no image classifier.
        """
        return self._keras("float")

    def qat_model(self) -> keras.Model:
        """Load the quantization-aware tf_keras model, whose int8 self is `tflite`. Raises as `float_model`."""
        return self._keras("int8")

    def model(self) -> keras.Model:
        """Load the tf_keras model of the source's own precision. Raises as `float_model`."""
        return self._keras(self.precision)

    def models(self) -> dict[str, keras.Model]:
        """Load the float and the quantization-aware model, as "float" and "qat", as far as they exist.

        A run has both, and an -int8 name together with its sibling.
        """
        if self.kind == "run":
            has_qat = (self.path / QAT_FILE).is_file() or not (self.path / FLOAT_FILE).is_file()
            return {"float": self.float_model()} | ({"qat": self.qat_model()} if has_qat else {})
        if self.precision == "float":
            return {"float": self.model()}
        return ({} if self.sibling is None else {"float": self.sibling.model()}) | {"qat": self.model()}

    def tflite(self, *, keep_names: bool = False) -> bytes:
        """Read and check the int8 .tflite; if there is none, convert the quantization-aware model.

        Args:
            keep_names: keep the names of inner tensors, for which the quantization-aware model, if there is one, is converted
                again; the last bit of a bias may then differ from the file's.

        Raises:
            FileNotFoundError: the run is not finished.
            ValueError: the net is float, or the file is damaged.
        """
        file = self.tflite_file
        if file is None and self.precision == "int8" and self._run_folder is not None:  # qat.h5 beside its .tflite
            file = self._run_folder / TFLITE_FILE
        has_model = self.kind == "name" or (self.kind == "run" and (self.path / QAT_FILE).is_file())
        if (keep_names and has_model) or file is None or not file.is_file():
            if self.precision == "float":
                raise self._other_precision("int8")
            from .models.convert import to_tflite

            return to_tflite(self.qat_model(), labels=self.labels, resize=self.resize, keep_names=keep_names)
        Int8Model(file)
        return file.read_bytes()

    def int8_model(self, *, threads: int = 1) -> Int8Model:
        """Load the int8 net on LiteRT. Raises as `tflite`."""
        return Int8Model(self.tflite_file or self.tflite(), threads=threads)

    def load_data(self, dataset: str | None = None, **reading) -> Dataset:
        """Load a data set, None: the net's own, as `reading_of` says and `reading`, which goes before it.

        Raises:
            FileNotFoundError: the folder that the net was trained on is not here.
            ValueError, OSError: as `check_data_known` and `load_dataset`.
        """
        if dataset is None:
            self.check_data_known()
        name = dataset or self.dataset_name
        try:
            return load_dataset(name, **self.reading_of(name) | reading)
        except (ValueError, FileNotFoundError) as error:
            if dataset is not None or not str(error).startswith("no folder"):
                raise
        what = f"{self.given} was trained on the folder {name}, which is not here"
        raise FileNotFoundError(f"{what}; give --dataset, in Python dataset=")

    def check_data_known(self) -> None:
        """Raise ValueError if the data that the net was trained on are not known."""
        if self.dataset_name is None:
            reason = "was trained on arrays" if self.dataset_title else "does not say what data it was trained on"
            remedy = "give --dataset, in Python dataset= or, for an analysis, calibration: uint8 training images"
            raise ValueError(f"{self.given} {reason}; {remedy}")

    def warn_if_other_data(self, dataset: Dataset) -> None:
        """Warn if a data set has another title than the one that the net was trained on."""
        if self.dataset_title not in (None, dataset.title):
            what = f"the data is {dataset.title}, the net was trained on {self.dataset_title}"
            text = f"{self.given}: {what}; its accuracies here do not compare with those measured then"
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    @cached_property
    def _run_folder(self) -> Path | None:
        """Folder of the run that the source is, or is a file of; None if it is neither."""
        if self.path is None or (self.kind != "run" and self.path.name not in NET_FILES):
            return None
        folder = self.path if self.kind == "run" else self.path.parent
        return folder if (folder / SPEC_FILE).is_file() else None

    @cached_property
    def _dataset(self) -> dict:
        """The fields of the run's dataset.json; none without a run, or if the file is damaged."""
        try:
            fields = json.loads((self._run_folder / DATASET_FILE).read_text()) if self._run_folder else {}
        except (OSError, ValueError):
            return {}
        return fields if isinstance(fields, dict) else {}

    @cached_property
    def _header(self):
        from .models.weights import read_header

        return read_header(self.path)

    @cached_property
    def _own_model(self):
        if self.memory is not None:
            return self.memory
        from .models.load import load_keras_model

        options = {key: getattr(self, key) for key in ("pixels", "size") if getattr(self, key) is not None}
        return load_keras_model(self.path, **options)

    def _keras(self, precision):
        if self.kind == "tflite":
            remedy = "give its run's folder, or the .h5 or .keras file that it was made from"
            what = f"{self.given} is a .tflite: quantized already, and no Keras model is in it"
            raise ValueError(f"{what}; {remedy}; `factorizenet analyze` and `inspect` show its layers and scales")
        if self.kind != "run" and self.precision != precision:
            raise self._other_precision(precision)
        if self.kind == "keras":
            return self._own_model
        if self.kind == "run":
            file = self._run_file(FLOAT_FILE if precision == "float" else QAT_FILE)
        else:
            file = self.path or self.store.path(self.card.file("weights"))
        from .models.weights import load_model

        return load_model(file, spec=self.spec, precision=precision)

    def _run_file(self, name) -> Path:
        if (self.path / name).is_file():
            return self.path / name
        if not (self.path / METRICS_FILE).is_file():
            raise not_finished(self.path, name)
        lacks = f"{self.path} has no {name}"
        if self.spec is None:
            raise ValueError(f"{lacks}: it holds a model of your own, quantized; give the file that it was made from")
        if name == QAT_FILE:
            raise ValueError(f"{lacks}: it was trained without QAT; train with --qat-epochs 1 or more")
        raise FileNotFoundError(f"{self.path / name} is missing; restore it from a copy, or train into a new folder")

    def _other_precision(self, wanted) -> ValueError:
        offered = f"give {self.sibling.card.name}" if self.sibling is not None else ""
        if wanted == "float":
            offered = offered or "give a -float name, a run's folder or its float.h5"
            return ValueError(f"{self.given} is int8, quantized already; a float model is needed; {offered}")
        offered = offered or "`factorizenet quantize` makes it int8 with calibration images"
        return ValueError(f"{self.given} is a float model; an int8 one is needed; {offered}")


def _kind_of_folder(path) -> str:
    if (path / "saved_model.pb").is_file():
        if not (path / "keras_metadata.pb").is_file():
            remedy = "give the name, the run or the .h5 that it was made from"
            raise ValueError(f"{path} is a SavedModel for serving, which tf_keras cannot load; {remedy}")
        return "keras"
    if not (path / SPEC_FILE).is_file() and not (path / TFLITE_FILE).is_file():
        raise FileNotFoundError(
            f"no model in {path}: a run's folder has {SPEC_FILE}, a SavedModel's saved_model.pb; give one of these, or a "
            "name of `factorizenet list`; if you mean the zoo's net of the folder's name, give its version, NAME@1"
        )
    return "run"


def _kind_of_file(path) -> str:
    if path.suffix.lower() == ".tflite":
        return "tflite"
    from .models.weights import is_weights_file

    try:
        return "weights" if is_weights_file(path) else "keras"
    except OSError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it from a copy or save the model again") from None
