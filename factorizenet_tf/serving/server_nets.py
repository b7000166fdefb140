"""The nets that a server holds: each classifies uint8 images, by LiteRT or by an exported SavedModel."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Net", "all_nets", "load_net", "read_image"]

PIXELS_MOST = 4096 * 4096
FORMATS = ("PNG", "JPEG")


@dataclass(frozen=True, eq=False)
class Net:
    """One model of a server.

    Args:
        name, version: what clients call it.
        labels: class names by number.
        input_shape: (height, width, channels) of an image.
        logits_of: a function from uint8 (n, *input_shape) to float32 (n, classes).
        kind: "int8 LiteRT" or "SavedModel".
    """

    name: str
    version: int
    labels: tuple[str, ...]
    input_shape: tuple[int, int, int]
    logits_of: object
    kind: str

    def classify(self, images: np.ndarray) -> dict[str, np.ndarray | list[str]]:
        """Logits and probabilities float32 (n, classes), class_id (n,) and class_name of uint8 images."""
        logits = self.logits_of(images)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        chosen = logits.argmax(axis=1)
        return {
            "logits": logits,
            "probabilities": shifted / shifted.sum(axis=1, keepdims=True),
            "class_id": chosen,
            "class_name": [self.labels[number] for number in chosen],
        }


def load_net(source: str, *, threads: int = 1, zoo_dir: str | os.PathLike | None = None) -> Net:
    """Load what a server is asked to serve.

    Args:
        source: a name of the zoo or a run's folder or a .tflite (its int8 LiteRT model), or a version that `export
            --serving` wrote, DIR/name/version (its SavedModel, by TensorFlow). `other=` before it names it otherwise.
        threads: of one inference of LiteRT.
        zoo_dir: where a name is looked up.

    Raises:
        FileNotFoundError: there is nothing at the source.
        ValueError: it is damaged, or its name cannot be served.
    """
    from ..loading import check_served_name, named_source, resolve

    called, source = named_source(source)
    path = Path(source)
    if (path / "saved_model.pb").is_file():
        return _saved_model(path.resolve(), called)
    found = resolve(source, zoo_dir=zoo_dir)
    model = found.int8_model(threads=threads)
    labels = found.labels or tuple(map(str, range(model.num_classes)))
    name = check_served_name(called or found.name)
    return Net(name, 1, labels, model.input_shape, model.predict, "int8 LiteRT")


def _saved_model(path: Path, called: str | None) -> Net:
    from .._keras import tf
    from ..loading import check_served_name

    if not (path / "assets" / "labels.txt").is_file() or not path.name.isdecimal():
        raise ValueError(f"{path} is no version that `factorizenet export --serving` wrote; export it again")
    labels = tuple((path / "assets" / "labels.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]
    shape = tuple(signature.structured_input_signature[1]["image"].shape[1:])

    def logits_of(images, _kept=loaded):
        return signature(image=tf.constant(images))["logits"].numpy()

    return Net(check_served_name(called or path.parent.name), int(path.name), labels, shape, logits_of, "SavedModel")


def read_image(content: bytes, shape: Sequence[int]) -> np.ndarray:
    """The uint8 image (height, width, channels) in the bytes of a PNG or JPEG file, resized as training images are.

    Raises:
        ValueError: they are no such file, damaged, or of more than 4096 x 4096 pixels.
    """
    from PIL import Image

    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > PIXELS_MOST:
                raise ValueError(f"an image of {picture.width} x {picture.height} pixels; at most {PIXELS_MOST:,}")
            picture = picture.convert("L" if channels == 1 else "RGB")
            if picture.size != (width, height):
                picture = picture.resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(picture, np.uint8).reshape(shape)
    except ValueError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{len(content)} bytes that are no PNG or JPEG image ({error})") from None


def all_nets(
    sources: Sequence[str | os.PathLike], *, threads: int = 1, zoo_dir: str | os.PathLike | None = None
) -> list[Net]:
    """`load_net` of each. Raises ValueError where two have one name, too."""
    nets = [load_net(str(source), threads=threads, zoo_dir=zoo_dir) for source in sources]
    names = [net.name for net in nets]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models are called {name!r}; name one otherwise: other={sources[names.index(name)]}")
    return nets
