"""Known ways to make a trained net's convolutions cheaper, beside this package's, at the same share of its MACs.

    python tuner/known_methods.py [--share 0.5]            # before any training, some minutes
    nice python tuner/known_methods.py --tune runs/known   # each tuned as `factorize --run` does: 5 + 1 epochs, the original as teacher
    python tuner/known_methods.py --net runs/others/resnet20   # another net: a run's folder, or a float net of the zoo
    python tuner/known_methods.py --net ... --tune ... --ours runs/others/resnet20-50   # ours is tuned already, by `factorize --run`

On the zoo's ResNet-8 or `--net`, and CIFAR-10 (JPEG), all validation and test images, int8 by PTQ before and by QAT after the tuning. The methods:

* low rank: a Kx1 convolution and a 1xK one (Jaderberg et al., arXiv 1405.3866, scheme 2), by singular values
* Tucker-2: 1x1, KxK and 1x1 (Kim et al., arXiv 1511.06530), by higher-order orthogonal iteration
* decoupling: depthwise and pointwise, three per channel (Guo et al., arXiv 1808.05517), by singular values of the kernel alone;
  layers from the last on until the share is reached
* ours: levels and middles chosen from the table of 256 images, layers fitted on 768

Ranks are one share of each layer's own. Writes results/known_methods.csv, a row a net, method and share.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from exhaustive import read_rows

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.files import write_csv
from factorizenet_tf.loading import resolve
from factorizenet_tf.models.factorize import levels_of_layers
from factorizenet_tf.runs import load_run

RESULTS = Path(__file__).parent / "results" / "known_methods.csv"
NET = "baseline-resnet8-float"


def main() -> None:
    """Parse, factorize by each method, measure, tune where asked, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--net", default=NET, help="a float net of the zoo, or a run's folder")
    parser.add_argument("--share", type=float, default=0.5, help="of the original's MACs")
    parser.add_argument("--only", nargs="*", choices=METHODS, default=list(METHODS), help="which methods")
    parser.add_argument("--tune", type=Path, help="folder of the tuned runs")
    parser.add_argument("--ours", type=Path, help="a run of `factorize --run` of this net and share: ours, tuned")
    arguments = parser.parse_args()
    data, model = fnet.load_dataset("cifar10"), resolve(arguments.net).with_precision("float").float_model()
    title = Path(arguments.net).name
    images, limit = data.calibration(768), arguments.share * fnet.count_macs(model)
    tuned_already = None if arguments.ours is None else load_run(arguments.ours)
    for name in arguments.only:
        if name == "ours" and tuned_already is not None:
            level, middle = choices_of(tuned_already.spec, model)
            net = fnet.factorize(model, level, middle=middle, calibration=images)
        else:
            net = METHODS[name](model, limit, images)
        int8 = fnet.Int8Model(fnet.to_tflite(net, calibration=images))
        row = {
            "net": title,
            "method": name,
            "share": arguments.share,
            "macs": fnet.count_macs(net),
            "params": fnet.count_params(net),
        }
        row |= {
            "val_float": round(fnet.accuracy(net, data.validation), 4),
            "val_int8": round(fnet.accuracy(int8, data.validation), 4),
        }
        tuned = {}
        if arguments.tune is not None:
            folder = name.replace(" ", "-") if title == NET else f"{title}-{name.replace(' ', '-')}"
            how = {"out": arguments.tune / folder, "recipe": fnet.tuning_recipe_for(data.name)}
            spec = fnet.architecture_of(net, folder)
            if name == "ours" and tuned_already is not None:
                found = tuned_already.metrics
                if found["macs"] != row["macs"]:
                    raise SystemExit(f"error: {arguments.ours} has {found['macs']:,} MACs, not {row['macs']:,}")
                found = found["accuracy"]
            else:
                found = fnet.train(spec, data, initial=net, teacher=model, **how).metrics["accuracy"]
            tuned = {
                f"tuned_{short}_int8": round(found[split]["tflite"], 4)
                for short, split in (("val", "validation"), ("test", "test"))
            }
        rows, key = read_rows(RESULTS), (title, name, str(arguments.share))
        places = [(old["net"], old["method"], old["share"]) for old in rows]
        place = places.index(key) if key in places else len(rows)
        old = rows[place] if key in places else {}
        row |= {column: tuned.get(column, old.get(column, "")) for column in ("tuned_val_int8", "tuned_test_int8")}
        print(row, flush=True)
        write_csv(RESULTS, [*rows[:place], row, *rows[place + 1 :]])


def low_rank(model, limit, images):
    """Kx1, then 1xK."""

    def parts(layer, share):
        kernel, *bias = layer.get_weights()
        height, width, channels, filters = kernel.shape
        matrix = kernel.transpose(0, 2, 1, 3).reshape(height * channels, width * filters)
        u, values, right = np.linalg.svd(matrix, full_matrices=False)
        rank = max(1, round(share * len(values)))
        first = (u[:, :rank] * np.sqrt(values[:rank])).reshape(height, 1, channels, rank)
        second = (np.sqrt(values[:rank])[:, None] * right[:rank]).reshape(rank, width, filters).transpose(1, 0, 2)
        down, across = layer.strides
        return [(first, [], (down, 1)), (second[None], bias, (1, across))]

    return within(model, limit, parts)


def tucker(model, limit, images):
    """1x1, KxK, 1x1."""

    def parts(layer, share):
        kernel, *bias = layer.get_weights()
        channels, filters = kernel.shape[2:]
        ranks = [max(1, round(share * count)) for count in (channels, filters)]
        inner, outer = (leading(np.moveaxis(kernel, axis, 0), rank) for axis, rank in zip((2, 3), ranks))
        for _ in range(10):
            inner = leading(np.moveaxis(kernel @ outer, 2, 0), ranks[0])
            outer = leading(np.moveaxis(np.einsum("hwcf,cr->hwrf", kernel, inner), 3, 0), ranks[1])
        core = np.einsum("hwcf,cr,fs->hwrs", kernel, inner, outer)
        return [(inner[None, None], [], (1, 1)), (core, [], layer.strides), (outer.T[None, None], bias, (1, 1))]

    return within(model, limit, parts)


def leading(tensor: np.ndarray, rank: int) -> np.ndarray:
    """Give the first left singular vectors of a tensor unfolded along its first axis."""
    return np.linalg.svd(tensor.reshape(len(tensor), -1), full_matrices=False)[0][:, :rank]


def decoupled(model, limit, images):
    """Depthwise and pointwise, three times a channel, by the kernels alone."""
    names = list(levels_of_layers(model))
    for first in reversed(range(len(names))):
        net = fnet.factorize(model, dict.fromkeys(names[first:], 9), middle=dict.fromkeys(names[first:], 3))
        if fnet.count_macs(net) <= limit:
            break
    return net


def ours(model, limit, images):
    """Levels and middles from the table, fitted on images."""
    level, middle = fnet.choose_levels(model, fnet.factorization_table(model, images[:256]), limit)
    return fnet.factorize(model, level, middle=middle, calibration=images)


def choices_of(spec, model) -> tuple[dict[str, int], dict[str, float]]:
    """Read off a factorized net's layers which level and middle each of the model's has: another table may choose others."""
    level, middle = {}, {}
    for part, kind, fields, _ in json.loads(spec.layers):
        name = part.removesuffix("_spatial")
        if name != part:
            channels, filters = model.get_layer(name).input_shape[-1], model.get_layer(name).filters
            is_depthwise = kind == "DepthwiseConv2D"
            between = channels * fields["depth_multiplier"] if is_depthwise else fields["filters"]
            level[name] = int(np.log2(channels if is_depthwise else fields["groups"]))
            middle[name] = between / channels
            assert channels <= filters, f"{name}: its pointwise part comes first"
    return level, middle


METHODS = {"low rank": low_rank, "tucker-2": tucker, "decoupling": decoupled, "ours": ours}


def within(model, limit, parts):
    """Give the net whose layers are replaced by `parts(layer, share)` at the largest share of ranks within the limit."""
    shares = np.linspace(1, 0.02, 50)
    return next(net for net in (replaced(model, parts, share) for share in shares) if fnet.count_macs(net) <= limit)


def replaced(model, parts, share) -> keras.Model:
    """Replace each layer by convolutions of given kernels, biases and strides; a layer that this makes no cheaper stays."""
    spec = fnet.architecture_of(model)
    rows, weights = [], {}
    names = levels_of_layers(model)
    for name, kind, fields, inputs in json.loads(spec.layers):
        layer = model.get_layer(name)
        made = parts(layer, share) if name in names else []
        numbers, places = [kernel.size for kernel, *_ in made], np.prod(layer.output_shape[1:3]) if made else 0
        # The first parts may run at a larger size than the last.
        first = np.prod(layer.input_shape[1:3]) / made[0][2][0] / made[0][2][1] if made else 0
        if not made or numbers[0] * first + sum(numbers[1:]) * places >= layer.get_weights()[0].size * places:
            rows.append([name, kind, fields, inputs])
            weights[name] = layer.get_weights()
            continue
        for number, (kernel, bias, strides) in enumerate(made):
            is_last = number + 1 == len(made)
            own = name if is_last else f"{name}_{number}"
            activation = fields["activation"] if is_last else "linear"
            changes = {
                "filters": kernel.shape[3],
                "kernel_size": kernel.shape[:2],
                "strides": strides,
                "use_bias": bool(bias),
            }
            rows.append([own, kind, {**fields, **changes, "activation": activation}, inputs])
            weights[own], inputs = [kernel, *bias], [own]
    made = dataclasses.replace(spec, layers=json.dumps(rows))
    net = fnet.build(made)
    for name, values in weights.items():
        net.get_layer(name).set_weights(values)
    return net


if __name__ == "__main__":
    main()
