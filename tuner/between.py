"""Do BatchNorm and an activation between the two parts of a factorized layer help after tuning?

    nice python tuner/between.py --out runs/between   # some six minutes a net of one core; killed, it goes on

The zoo's ResNet-8 at half of its MACs, levels and middles from the table, fitted on 768 images; between the two convolutions of each layer nothing
(as `factorize` makes it), BatchNorm that begins as the identity, or BatchNorm and ReLU6. Before ReLU6 the middle is shifted and
scaled to mean 3 and deviation 1, which the pointwise convolution undoes, so that hardly anything is cut off at the start. Both fold
into the convolution and its clamp: no MAC more. Each is tuned for 5 + 1 epochs with the original as teacher, CIFAR-10 (JPEG), one seed. Writes
results/between.csv: accuracies before and after, all validation and test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.console import show_rows
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve

RESULTS = Path(__file__).parent / "results" / "between.csv"
BETWEEN = ("nothing", "BatchNorm", "BatchNorm, ReLU6")
MEAN, DEVIATION = 3.0, 1.0  # of what ReLU6 reads


def main() -> None:
    """Factorize, put something between, tune, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--share", type=float, default=0.5, help="of the original's MACs")
    arguments = parser.parse_args()
    data, model = fnet.load_dataset("cifar10"), resolve("baseline-resnet8-float").float_model()
    images = data.calibration(768)
    table = fnet.factorization_table(model, images[:256])
    level, middle = fnet.choose_levels(model, table, arguments.share * fnet.count_macs(model))
    plain = fnet.factorize(model, level, middle=middle, calibration=images)
    rows = []
    for between in BETWEEN:
        net = plain if between == "nothing" else with_between(plain, images, has_activation="ReLU6" in between)
        name = between.lower().replace(", ", "-")
        start, recipe = round(fnet.accuracy(net, data.validation), 4), fnet.tuning_recipe_for(data.name)
        spec = fnet.architecture_of(net, name)
        tuned = fnet.train(spec, data, out=arguments.out / name, initial=net, teacher=model, recipe=recipe).metrics
        row = {"between": between, "macs": fnet.count_macs(net), "val_before": start}
        for split, short in (("validation", "val"), ("test", "test")):
            of_split = tuned["accuracy"][split]
            row |= {
                f"{short}_{kind}": round(of_split[key], 4) for kind, key in (("float", "float"), ("int8", "tflite"))
            }
        rows.append(row)
        print(row, flush=True)
        write_csv(RESULTS, rows)
    show_rows(rows, title=data.title)


def with_between(model: keras.Model, images: np.ndarray, *, has_activation: bool) -> keras.Model:
    """Put BatchNorm, and ReLU6 where asked for, behind each first part, and undo in the second what it does on these images."""
    spec = fnet.architecture_of(model)
    rows, weights = [], {layer.name: layer.get_weights() for layer in model.layers}
    for name, kind, fields, inputs in json.loads(spec.layers):
        before = name.replace("_pointwise", "_spatial")
        if name.endswith("_pointwise") and inputs == [before]:
            read = keras.Model(model.input, model.get_layer(before).output)(
                images / np.float32(255), training=False
            ).numpy()
            mean, variance = read.mean((0, 1, 2)), read.var((0, 1, 2))
            norm = {"momentum": 0.9, "epsilon": 1e-3}
            deviation = np.sqrt(variance + norm["epsilon"])
            rows.append([f"{before}_bn", "BatchNormalization", norm, [before]])
            inputs = [f"{before}_bn"]
            weights[f"{before}_bn"] = [deviation, mean, mean, variance]
            if has_activation:
                weights[f"{before}_bn"] = [np.full_like(mean, DEVIATION), np.full_like(mean, MEAN), mean, variance]
                rows.append([f"{before}_relu6", "ReLU", {"max_value": 6.0}, inputs])
                inputs = [f"{before}_relu6"]
                kernel, bias = weights[name]
                scale = deviation / DEVIATION
                bias = bias + np.einsum("hwcf,c->f", kernel, mean - MEAN * scale)
                weights[name] = [kernel * scale[:, None], bias]
        rows.append([name, kind, fields, inputs])
    net = fnet.build(dataclasses.replace(spec, layers=json.dumps(rows)))
    for layer in net.layers:
        layer.set_weights(weights.get(layer.name, []))
    return net


if __name__ == "__main__":
    main()
