"""A user's own tf_keras model: loaded from a file, quantized after or with training, evaluated."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from . import zoo
from ._keras import functional_model, keras, tf
from .baselines import ResNet8
from .cost import count_macs, count_params
from .data import Dataset
from .evaluation import accuracy
from .files import write_bytes, write_text
from .int8 import Int8Model
from .model import build
from .phase import Trainer
from .progress import Progress
from .quantize import is_quantize_aware, quantize_aware
from .recipe import Recipe
from .run import claim
from .spec import ModelSpec
from .tflite import to_tflite
from .weights import fingerprint, is_weights_file, load_weights, read_header

__all__ = ["load_any", "load_float", "quantize_own", "spec_of"]

METHODS = ("qat", "ptq", "ptq-per-tensor")


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


def quantize_own(
    model: keras.Model,
    dataset: Dataset,
    *,
    out: str | os.PathLike,
    method: str = "qat",
    recipe: Recipe | None = None,
    callbacks=(),
    verbose: bool = True,
) -> dict:
    """Quantize a trained float model to an int8 .tflite and measure both.

    Args:
        model: functional or sequential tf_keras model, images in 0..1 in, logits or probabilities out.
        dataset: its data; the images' shape and the number of classes must be the model's.
        out: folder for model.tflite, metrics.json and, under QAT, checkpoint.npz and history.csv: the same call
            continues after a kill.
        method: "qat" (fine-tunes with `recipe.qat_epochs`; a model that ends in a softmax is refused, since the loss
            takes logits), "ptq" or "ptq-per-tensor".
        recipe: of QAT and of the number of calibration images.
        callbacks, verbose: as for `train`.

    Returns:
        metrics.json as a dict: accuracy (0..1) of the float model and the .tflite on validation and test, and costs.

    Raises:
        ValueError, TypeError, OSError, NanLossError: as `train` and `quantize_aware`.
    """
    recipe = recipe or Recipe()
    functional_model(model, "quantize")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if is_quantize_aware(model):
        raise ValueError(f"the model {model.name!r} is quantization-aware already; give the float one")
    if tuple(dataset.image_shape) != tuple(model.input_shape[1:]):
        raise ValueError(
            f"the images are {dataset.image_shape}, the model takes {model.input_shape[1:]}; load the data with that input_shape"
        )
    if dataset.num_classes != model.output_shape[-1]:
        raise ValueError(f"{dataset.title} has {dataset.num_classes} classes, the model {model.output_shape[-1]}")
    if method == "qat" and _ends_in_softmax(model):
        raise ValueError(
            f"the model {model.name!r} ends in a softmax; QAT trains on logits: give it without the softmax, or use ptq"
        )
    costs = {"macs": count_macs(model), "params": count_params(model)}  # raises on a layer that nobody can count
    calibration = dataset.calibration(recipe.calibration_images)
    # What the model cannot do shows before anything is written.
    quantized = quantize_aware(model, calibration=calibration) if method == "qat" else None
    folder = Path(out)
    identity = {"family": "own", "method": method, "name": model.name, "weights": fingerprint(model)}
    claim(folder, dataset, recipe, json.dumps(identity, indent=2) + "\n")
    with Progress(verbose) as progress:
        if quantized is not None:
            trainer = Trainer(
                folder, model.name, dataset, recipe, tuple(callbacks), tf.distribute.get_strategy(), progress
            )
            trainer.fit("qat", quantized)
            content = to_tflite(quantized, labels=dataset.class_names)
        else:
            content = to_tflite(model, calibration=calibration, per_channel=method == "ptq", labels=dataset.class_names)
        write_bytes(folder / "model.tflite", content)
        models = {"float": model, "tflite": Int8Model(content)}
        progress.say("evaluating")
        splits = {"validation": dataset.validation, "test": dataset.test}
        metrics = {
            "name": model.name,
            "method": method,
            "dataset": dataset.title,
            "images": {name: len(split) for name, split in splits.items()},
            "accuracy": {name: {k: accuracy(m, split) for k, m in models.items()} for name, split in splits.items()},
            **costs,
            "size_bytes": len(content),
            "operators": sorted(set(models["tflite"].operators)),
        }
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    return metrics


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


def _ends_in_softmax(model) -> bool:
    last = model.layers[-1]
    return type(last).__name__ == "Softmax" or getattr(getattr(last, "activation", None), "__name__", "") == "softmax"
