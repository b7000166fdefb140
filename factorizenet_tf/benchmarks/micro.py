"""How far TensorFlow Lite Micro's outputs are from LiteRT's over a zoo's int8 models, against the bounds kept to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..tflite.int8_model import Int8Model
from ..tflite.micro import micro_outputs

__all__ = ["KERNELS", "KernelDistance", "kernel_distances", "measure_micro"]

KERNELS = ("LiteRT's reference kernels", "XNNPACK")
REFERENCE_BOUND = 1  # the same arithmetic; MEAN alone may round a tie otherwise
XNNPACK_BOUND = 4  # it rounds otherwise at each layer, and the steps add up over the layers
IMAGES = 200
NOISE_SEED = 0


@dataclass(frozen=True)
class KernelDistance:
    """How far TensorFlow Lite Micro's reference kernels are from other ones on the same file and images.

    Args:
        kernels: the other ones, of KERNELS.
        images: how many.
        largest: distance of two int8 outputs in steps of the output's scale (LSB).
        equal: share of the outputs, images x classes, that are the same.
        same_class: share of the images whose largest output is the same class's.
    """

    kernels: str
    images: int
    largest: int
    equal: float
    same_class: float


def kernel_distances(content: bytes, images: np.ndarray) -> tuple[KernelDistance, KernelDistance]:
    """TensorFlow Lite Micro against LiteRT's reference kernels, and against XNNPACK's.

    Args:
        content: an int8 .tflite.
        images: uint8 (n, height, width, channels).

    Raises:
        ModuleNotFoundError: tflite-micro is not installed (extra `micro`).
        TypeError, ValueError: the file or the images are not what `Int8Model` takes.
    """
    model = Int8Model(content)
    others = model.predict_reference(images), model.predict_quantized(images)
    micro = micro_outputs(content, images)
    return tuple(_distance(kernels, micro, other) for kernels, other in zip(KERNELS, others))


def measure_micro(*, zoo_dir=None, data_dir=None, verbose: bool = True) -> list[dict]:
    """`kernel_distances` of every int8 model of a zoo on 200 of its test images and on 200 of noise.

    Args:
        zoo_dir: None, a folder or an address, as for `zoo.load`.
        data_dir: where TFDS keeps its data; a model whose data set is not there is measured on noise alone.
        verbose: say what is measured.

    Returns:
        One dict a figure: what, value (steps of the output), bound, holds.
    """
    from .. import zoo as models
    from ..console import Progress

    rows, tests = [], {}
    with Progress(verbose) as progress:
        for card in models.list(precision="int8", zoo_dir=zoo_dir):
            progress.say(f"{card.name}: TFLite Micro, LiteRT's reference kernels, XNNPACK")
            content = models.load(card.name, "path", zoo_dir=zoo_dir).read_bytes()
            key = card.dataset_name, card.spec.input_shape
            if key not in tests:
                tests[key] = _test_images(*key, data_dir)
            for kind, images in {"test images": tests[key], "images of noise": noise(card.spec.input_shape)}.items():
                if images is not None:
                    rows += [_row(card.name, kind, distance) for distance in kernel_distances(content, images)]
    return rows


def noise(shape: tuple[int, int, int], count: int = IMAGES) -> np.ndarray:
    """Images uint8 (count, *shape) of independent pixels, the same for everybody."""
    return np.random.default_rng(NOISE_SEED).integers(0, 256, (count, *shape), np.uint8)


def _test_images(name, shape, data_dir):
    from ..data import load_dataset

    try:
        return load_dataset(name, input_shape=shape, data_dir=data_dir, download=False).test.images[:IMAGES]
    except (OSError, ValueError):
        return None


def _distance(kernels, micro, other) -> KernelDistance:
    steps = np.abs(micro.astype(int) - other)
    same = np.mean(micro.argmax(1) == other.argmax(1))
    return KernelDistance(kernels, len(micro), int(steps.max()), float(np.mean(steps == 0)), float(same))


def _row(name, kind, distance):
    bound = REFERENCE_BOUND if distance.kernels == KERNELS[0] else XNNPACK_BOUND
    what = (
        f"{name}: TFLite Micro against {distance.kernels} on {distance.images} {kind}, largest distance in LSB "
        f"({distance.equal:.2%} equal, class {distance.same_class:.1%})"
    )
    return {"what": what, "value": distance.largest, "bound": f"<= {bound}", "holds": distance.largest <= bound}
