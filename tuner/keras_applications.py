"""Which nets of keras.applications are the same rebuilt in tf_keras, and what of them int8 leaves: the CNNs of modest size.

    python tuner/keras_applications.py            # all, some minutes; or some by name: MobileNet VGG16

Depthwise kernels, BatchNorm's gamma and beta are drawn and its statistics taken from the images, so that logits differ between these (by 2): with
Keras's own random weights they hardly do, and anything passes. Errors are root mean squares over smooth random images, relative to the logits' deviation. PTQ and QAT are
untrained, so they say that a net converts and computes what it should, not what accuracy it keeps. QAT is compared with its own
.tflite; a net that TFMOT cannot quantize has the reason. Writes results/keras_applications.csv, a row a net, whole after each net.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.models.evaluate import logits
from factorizenet_tf.models.keras3 import quantizable
from factorizenet_tf.pixels import RANGES

RESULTS = Path(__file__).parent / "results" / "keras_applications.csv"
# Height and width of the images: small, and such that something is left behind the last stride.
SIZES = {
    "MobileNet": 32,
    "MobileNetV2": 32,
    "MobileNetV3Small": 32,
    "MobileNetV3Large": 32,
    "EfficientNetB0": 32,
    "EfficientNetV2B0": 32,
    "ResNet50": 32,
    "ResNet50V2": 32,
    "DenseNet121": 32,
    "NASNetMobile": 32,
    "Xception": 71,
    "VGG16": 32,
}
RESCALING = (
    "MobileNetV3Small",
    "MobileNetV3Large",
    "EfficientNetB0",
    "EfficientNetV2B0",
)  # take 0..255; the others -1..1
SPREAD = 2.0


def application(name: str):
    """Build a net of keras.applications with drawn weights.

    Returns:
        The model, smooth random images uint8 (64, size, size, 3), and the range of the pixels that it takes.
    """
    import keras

    size = SIZES[name]
    keras.utils.set_random_seed(0)
    options = {"input_shape": (size, size, 3), "weights": None, "classes": 10, "classifier_activation": None}
    model, random = getattr(keras.applications, name)(**options), np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.gamma.assign(random.normal(1, 0.2, layer.gamma.shape))
            layer.beta.assign(
                random.normal(1.5, 0.3, layer.beta.shape)
            )  # about 0, random nets amplify rounding by depth
            layer.momentum = 0
        elif type(layer).__name__ == "Normalization":
            layer.set_weights([random.uniform(0.1, 0.9, w.shape) if w.shape else w for w in layer.weights])
        for weight in layer.weights:
            if len(weight.shape) == 4 and weight.shape[3] == 1:  # depthwise: Keras's own are tiny, so that biases win
                weight.assign(random.normal(0, 0.5, weight.shape))
    coarse = random.integers(0, 256, (64, 8, 8, 3))
    images = coarse.repeat(-(-size // 8), 1).repeat(-(-size // 8), 2)[:, :size, :size].astype(np.uint8)
    head = [layer for layer in model.layers if layer.weights][-1]
    kernel, *bias = head.get_weights()
    pixels = "0..255" if name in RESCALING else "-1..1"
    outputs(model, images, pixels, training=True)  # BatchNorm's statistics become those of the images
    head.set_weights([kernel * (SPREAD / _deviation(outputs(model, images, pixels))), *bias])
    return model, images, pixels


def outputs(model, images: np.ndarray, pixels: str, *, training: bool = False) -> np.ndarray:
    """Compute the logits of a Keras 3 model of images uint8, as pixels of a range."""
    scale, offset = RANGES[pixels]
    return np.asarray(model((images / 255 * scale + offset).astype(np.float32), training=training))


def _deviation(scores) -> float:
    """How far the logits of different images lie apart: their deviation, the mean over classes."""
    return float(scores.std(0).mean())


def row(name: str) -> dict:
    """Rebuild, quantize and compare one net."""
    model, images, pixels = application(name)
    rebuilt = fnet.from_keras3(model, pixel_range=pixels)
    before = outputs(model, images, pixels)
    after = logits(rebuilt, images)
    found = {"net": name, "size": images.shape[1], "macs": fnet.count_macs(rebuilt), "spread": _deviation(before)}
    found["largest_float_difference"] = float(np.abs(after - before).max()) / _deviation(before)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ptq = fnet.Int8Model(fnet.to_tflite(rebuilt, calibration=images))
        found |= {"ptq_error": _error(ptq.predict(images), before), "ptq_types": " ".join(sorted(ptq.tensor_types))}
        try:
            qat = fnet.quantize_aware(quantizable(rebuilt), calibration=images)
        except ValueError as error:
            found |= {"qat_error": "", "qat_types": "", "qat_lsb": "", "note": str(error)}
        else:
            content = fnet.Int8Model(fnet.to_tflite(qat))
            agreement = fnet.agreement(qat, content, images)
            types = " ".join(sorted(content.tensor_types))
            found |= {"qat_error": _error(content.predict(images), before), "qat_types": types}
            found |= {"qat_lsb": agreement.largest_lsb, "note": ""}
    found["note"] = "; ".join([found["note"], *(str(w.message) for w in caught if w.category is RuntimeWarning)])
    found["note"] = " ".join(found["note"].strip("; ").split())
    return {key: round(float(value), 6) if isinstance(value, float) else value for key, value in found.items()}


def _error(scores, reference):
    return float(np.sqrt(np.mean((scores - reference) ** 2))) / _deviation(reference)


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SIZES)}; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(SIZES):
        parser.error(f"no net {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")
    rows = {}
    if arguments.out.exists():
        with open(arguments.out, newline="") as file:
            rows = {found["net"]: found for found in csv.DictReader(file)}
    for name in arguments.names or SIZES:
        rows[name] = row(name)
        write_csv(arguments.out, [rows[known] for known in SIZES if known in rows])
        show_rows([{key: value for key, value in rows[name].items() if key != "note"}], title=rows[name]["note"])


if __name__ == "__main__":
    main()
