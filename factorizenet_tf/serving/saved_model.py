"""Write a net for TensorFlow Serving: a graph from pixels or image files to classes, model.tflite, warm-up requests."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._keras import keras, quiet_notices, tf, to_float
from ..files import atomic_folder
from ..loading import resolve
from ..machine import versions as package_versions
from ..models.native import inference_kernels
from ..tflite.io_types import with_serving_signature
from .models_config import add_model, next_version

__all__ = ["BATCH_SIZES", "WARM_UP_FILE", "ServingExport", "export", "serving_module"]

BATCH_SIZES = (1, 4, 16, 64)  # of the warm-up requests: those of the batching parameters in docs/serve.md
CHANNELS_OF_A_GROUP = 16  # a vector of AVX-512: below it oneDNN's float kernels are slower than with zeros filled in
LUMA = (19595, 38470, 7471)  # 0.299, 0.587, 0.114 of 2 ** 16: Pillow's own integers
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"


def serving_module(model: keras.Model, labels: Sequence[str], resize: str = "stretch") -> tuple[tf.Module, dict]:
    """Make the module and its signatures for `tf.saved_model.save`.

    `serving_default` takes `image` uint8 (batch, height, width, channels), `serving_bytes` takes `image_bytes`, strings (batch,)
    that are image files of any size. Both give `logits` and `probabilities` float32 (batch, classes), `class_id` int64
    (batch,) and `class_name`, strings (batch,).

    Files are read as by `data.read_image`, as closely as TensorFlow's decoder allows: it takes GIF and JPEG XL, too, but no
    PPM; EXIF's orientation is not applied; a resized pixel may differ by one of 255 steps; and a file's pixels are limited by
    the server's memory alone.

    Args:
        model: tf_keras model, images in 0..1 in, logits out. Its weights become constants, so that TensorFlow fuses
            convolution, BatchNorm and activation; grouped convolutions run TensorFlow's kernels, not XLA's.
        labels: class names by number.
        resize: image files of another aspect ratio: "stretch", "crop" or "pad".
    """
    height, width, channels = model.input_shape[1:]
    image = tf.TensorSpec((None, height, width, channels), tf.uint8, name="image")
    module = tf.Module()
    net = _with_constants(model, image)

    def classify(image):
        image = tf.ensure_shape(image, (None, height, width, channels))  # a C++ session takes any shape
        (logits,) = net(image)
        chosen = tf.argmax(logits, axis=-1)
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "class_id": chosen,
            "class_name": tf.gather(tf.constant(list(labels)), chosen),
        }

    def decode(content):
        # Always three channels: of one, TensorFlow refuses a BMP, a WebP and a CMYK JPEG.
        image = tf.cond(
            tf.io.is_jpeg(content),
            lambda: tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE"),  # Pillow's
            lambda: tf.io.decode_image(content, channels=3, expand_animations=False),
        )
        image = tf.ensure_shape(image, (None, None, 3))
        if channels == 1:
            luma = tf.reduce_sum(tf.cast(image, tf.int32) * LUMA, axis=-1, keepdims=True)
            image = tf.cast((luma + 2**15) // 2**16, tf.uint8)
        size, part = tf.cast(tf.shape(image)[:2], tf.float64), tf.constant((height, width), tf.float64)
        if resize == "crop":
            part = tf.cast(tf.maximum(1.0, tf.round(part * tf.reduce_min(size / part))), tf.int32)
            corner = (tf.shape(image)[:2] - part) // 2
            image = tf.image.crop_to_bounding_box(image, *tf.unstack(corner), *tf.unstack(part))
        part = (height, width)
        if resize == "pad":
            part = tf.cast(tf.maximum(1.0, tf.round(size * tf.reduce_min(part / size))), tf.int32)
        resized = tf.image.resize(image, part, antialias=True)
        if resize == "pad":
            resized = tf.image.pad_to_bounding_box(resized, *tf.unstack(((height, width) - part) // 2), height, width)
            resized = tf.ensure_shape(resized, (height, width, channels))
        return tf.cast(tf.round(tf.clip_by_value(resized, 0.0, 255.0)), tf.uint8)

    def classify_bytes(image_bytes):
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec((height, width, channels), tf.uint8))
        return classify(images)

    module.classify = tf.function(classify, input_signature=[image])
    strings = tf.TensorSpec((None,), tf.string, name="image_bytes")
    module.classify_bytes = tf.function(classify_bytes, input_signature=[strings])
    return module, {"serving_default": module.classify, "serving_bytes": module.classify_bytes}


def _with_constants(model, image):
    """Make a function of a batch of uint8 images that gives [logits], the model's weights constants in its graph."""
    # No public name has it; TensorFlow's own converter takes it from there.
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    def logits(image):
        return tf.cast(model(to_float(image), training=False), tf.float32)

    with inference_kernels(model, channels=CHANNELS_OF_A_GROUP):
        function = tf.function(logits, input_signature=[image]).get_concrete_function()
    return convert_variables_to_constants_v2(function)


@dataclass(frozen=True)
class ServingExport:
    """A written version: its folder, DIR/name/version, the bytes of all its files, and of model.tflite, None for float."""

    folder: Path
    name: str
    version: int
    precision: str
    size_bytes: int
    tflite_bytes: int | None

    def row(self) -> dict:
        """Give the fields as a line of a table."""
        return dataclasses.asdict(self) | {"folder": str(self.folder)}


def export(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    name: str | None = None,
    version: int | None = None,
    precision: str | None = None,
    labels: Sequence[str] | None = None,
    zoo_dir: str | os.PathLike | None = None,
) -> ServingExport:
    """Write a net as `folder/name/version` for TensorFlow Serving, with warm-up requests, and add it to models.config.

    A version is written aside and renamed, so that a polling server sees all of it or nothing; none is ever overwritten.
    The graph of an int8 net is the fake-quantized model, no faster than float; the true int8 net is model.tflite beside it,
    which the server takes with --prefer_tflite_model. The model is added to `folder/models.config`; the rest of that file
    stays as it is (`models_config.add_model`).

    Args:
        source: what `loading.resolve` takes.
        folder: made if it does not exist; may hold other models.
        name: for clients; None: the source's own.
        version: an integer above the newest one; None: the next.
        precision: of a run's nets, "int8" or "float"; None: int8. Any other source has one precision.
        labels: class names by number; None: the source's, or numbers if it has none.
        zoo_dir: where a name is looked up, as for `zoo.load`.

    Raises:
        ValueError: as `models_config.next_version` or `loading.resolve`; or the source is a .tflite or has another
            precision, or labels and classes differ in number.
        FileExistsError: `folder/name` holds something else, or another export took the version in the meantime.
        FileNotFoundError: the source does not exist.
        ModuleNotFoundError: tensorflow-serving-api is not installed (extra `serve`).
        OSError: the folder cannot be written.
        TimeoutError: another export held the folder's lock for 30 s.
    """
    net = resolve(source, zoo_dir=zoo_dir).with_precision(precision)
    target = next_version(folder, net.name if name is None else name, version)
    model = net.model()
    classes = int(model.output_shape[-1])
    labels = tuple(labels or net.labels or map(str, range(classes)))
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for {classes} classes; give one name a class")
    tflite = with_serving_signature(net.tflite()) if net.precision == "int8" else None
    described = {
        "name": target.parent.name,
        "version": int(target.name),
        "precision": net.precision,
        "input": {"name": "image", "dtype": "uint8", "shape": [None, *model.input_shape[1:]]},
        "preprocessing": "inside the graph: uint8 pixels divided by 255",
        "outputs": ["logits", "probabilities", "class_id", "class_name"],
        "labels": list(labels),
        "versions": package_versions(),
    }
    try:
        with atomic_folder(target, within=Path(folder)) as written:
            _write_version(written, model, described, tflite, net.resize)
    except FileExistsError:
        raise FileExistsError(f"{target} was written by another export meanwhile; export again") from None
    add_model(folder, target.parent.name)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    tflite_bytes = None if tflite is None else len(tflite)
    return ServingExport(target, target.parent.name, int(target.name), net.precision, size, tflite_bytes)


def _write_version(folder: Path, model: keras.Model, described: dict, tflite: bytes | None, resize: str) -> None:
    module, signatures = serving_module(model, described["labels"], resize)
    with tempfile.TemporaryDirectory() as temporary:
        module.files, labels = [], "\n".join(described["labels"])
        for name, text in (("labels.txt", labels), ("metadata.json", json.dumps(described, indent=2))):
            path = Path(temporary) / name
            path.write_text(f"{text}\n", encoding="utf-8")
            module.files.append(tf.saved_model.Asset(str(path)))
        with quiet_notices():
            tf.saved_model.save(module, str(folder), signatures=signatures)
    if tflite is not None:
        (folder / "model.tflite").write_bytes(tflite)
    (folder / WARM_UP_FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(folder / WARM_UP_FILE)) as writer:
        for batch in BATCH_SIZES:
            writer.write(_warm_up(described["name"], (batch, *model.input_shape[1:])))


def _warm_up(name, shape) -> bytes:
    """Serialize a logged request of `serving_default`, the one signature that graph and model.tflite share."""
    from tensorflow_serving.apis.predict_pb2 import PredictRequest
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    images = np.random.default_rng(shape[0]).integers(0, 256, shape, np.uint8)
    spec, inputs = {"name": name, "signature_name": "serving_default"}, {"image": tf.make_tensor_proto(images)}
    request = PredictRequest(model_spec=spec, inputs=inputs)
    return PredictionLog(predict_log={"request": request}).SerializeToString()
