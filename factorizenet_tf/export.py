"""A trained net written where it is used: an int8 .tflite or a SavedModel."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from . import zoo
from .files import write_bytes
from .int8 import Int8Model

__all__ = ["export_saved_model", "export_tflite"]


def export_tflite(source: str | os.PathLike, path: str | os.PathLike) -> int:
    """Write the int8 .tflite of a run, a name of the zoo, a .tflite or a qat.h5; gives its bytes.

    Raises:
        FileNotFoundError: there is nothing at `source`.
        ValueError: it is damaged, or a float model, which needs calibration images (`factorizenet quantize`).
        FileExistsError: `path` is there already.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already; choose another name or remove it")
    folder = Path(source)
    if not folder.exists() and str(source) in zoo.names():
        folder = zoo.load(str(source), "path")
    source = folder / "model.tflite" if (folder / "model.tflite").is_file() else folder
    if source.suffix == ".tflite":
        Int8Model(source)  # a damaged file is not passed on
        content = source.read_bytes()
    else:
        from .own import load_any
        from .quantize import is_quantize_aware
        from .tflite import to_tflite

        model = load_any(source)
        if not is_quantize_aware(model):
            raise ValueError(
                f"{source} is a float model; `factorizenet quantize` makes it int8 with calibration images"
            )
        content = to_tflite(model)
    write_bytes(path, content)
    return len(content)


def export_saved_model(source: str | os.PathLike, folder: str | os.PathLike) -> int:
    """Write a SavedModel with the signature `image` float32 (batch, height, width, channels) in 0..1 -> `logits`.

    Args:
        source: a run's folder (its float model), a name of the zoo, float.h5, qat.h5 or a tf_keras model. Grouped convolutions in it are
            TensorFlow's native ones, not XLA's.
        folder: new; written aside and renamed.

    Returns:
        The bytes of all its files.

    Raises:
        FileNotFoundError, ValueError: as `own.load_any`.
        FileExistsError: `folder` is there already.
    """
    from ._keras import tf
    from .grouped import use_native_kernels
    from .own import is_published, load_any

    folder, source = Path(folder), Path(source)
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; choose another name or remove it")
    if is_published(source):
        model = zoo.load(str(source), "keras")
    else:
        model = load_any(source / "float.h5" if (source / "float.h5").is_file() else source)
    if isinstance(model, Int8Model):
        raise ValueError(f"{source} is a .tflite; a SavedModel is made from a run's folder or its .h5 files")
    use_native_kernels(model)
    module = tf.Module()
    module.variables_used = model.variables
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    module.predict = tf.function(lambda image: {"logits": model(image, training=False)}, input_signature=[signature])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        tf.saved_model.save(module, str(Path(aside) / "model"), signatures={"serving_default": module.predict})
        shutil.move(Path(aside) / "model", folder)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
