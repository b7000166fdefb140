"""From a tf_keras model to the bytes of a true int8 .tflite."""

import contextlib
import functools
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._keras import functional_model, keras, quiet_notices, tf, to_float
from ..console import quiet_native_stderr
from ..data import check_images, check_resize
from ..files import atomic_folder, check_new
from ..tflite import flatbuffer
from ..tflite.slim import slim
from .keras3 import check_plain, check_weights
from .native import inference_kernels
from .quantize import is_quantize_aware, with_room_for_biases

__all__ = ["to_tflite", "with_full_range_pixels", "write_saved_model"]


def to_tflite(
    model: keras.Model,
    *,
    calibration: np.ndarray | None = None,
    per_channel: bool = True,
    labels: Sequence[str] | None = None,
    resize: str = "stretch",
    keep_names: bool = False,
) -> bytes:
    """Convert a model to an int8 .tflite: int8 in and out, the input's scale 1/255 and zero point -128.

    A camera's uint8 pixel thus becomes the input by subtracting 128. A quantization-aware model brings its ranges; a float
    one is quantized after training (PTQ) with minimum and maximum over the calibration images. The first of these gets one
    pixel value of 0 and one of 255, so that the input's range is 0..1 whatever the data.

    Args:
        model: functional or sequential tf_keras model that takes images in 0..1: float, or from `quantize_aware`.
        calibration: training images for PTQ, uint8 (n, height, width, channels).
        per_channel: a scale for each output channel of the weights, or one a tensor (PTQ only).
        labels: class names, kept in the file as the associated file labels.txt, which Int8Model and Android read.
        resize: how the training images were resized, as for `load_dataset`; kept in the file, for `predict` and `serve`.
        keep_names: keep the names of inner tensors, for tools that show the graph; without them the file is slimmer.

    Raises:
        TypeError: a Keras 3 model, or calibration that is not uint8.
        ValueError: weights that are not finite or huge (the layer is named), several outputs, a float model without
            calibration, a quantization-aware one with calibration or per_channel=False, or labels that disagree with the number
            of classes.
    """
    functional_model(model, "to_tflite")
    check_resize(resize)
    if (count := len(model.outputs)) != 1:
        raise ValueError(f"the model {model.name!r} has {count} outputs; make a model of the classifier's output alone")
    check_weights(model)
    check_plain(model)
    aware = is_quantize_aware(model)
    if aware and calibration is not None:
        raise ValueError("the model is quantization-aware: its ranges are learnt, so leave calibration out")
    if aware and not per_channel:
        raise ValueError("the model is quantization-aware per channel; per_channel=False is for PTQ of a float one")
    if not aware and calibration is None:
        raise ValueError("a float model needs calibration, uint8 training images: load_dataset(...).calibration(512)")
    if labels is not None and len(labels) != model.output_shape[-1]:
        raise ValueError(f"{len(labels)} labels for {model.output_shape[-1]} classes; give one name a class")
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    with inference_kernels(model):
        function = tf.function(lambda image: model(image, training=False)).get_concrete_function(signature)
    # The converter saves what it is given: the variables alone take 2 s, the Keras model with its layers' functions 11.
    holder = tf.Module()
    holder.variables_used = model.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    if not aware:
        images = with_full_range_pixels(check_images(calibration, model.input_shape[1:], "calibration"))
        converter.representative_dataset = lambda: ([to_float(image[None])] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter._experimental_disable_per_channel = not per_channel
    with with_room_for_biases(model) if aware else contextlib.nullcontext(), quiet_notices(), quiet_native_stderr():
        try:
            named = converter.convert()
        except Exception as error:  # of a class of the converter's own that has no public name
            reason = str(error).rpartition(" error: ")[2].partition("\n")[0][:200]
            raise ValueError(
                f"the model {model.name!r} cannot be converted ({reason}); try the other of PTQ and QAT"
            ) from None
        file = flatbuffer.read_flatbuffer(named)
        if _put_elu_in_int8(file):
            named = flatbuffer.write_flatbuffer(file)
        content = slim(named, keep_names=keep_names)
    _warn_of_float(file, model)
    files = {} if labels is None else {flatbuffer.LABELS_FILE: ("\n".join(labels) + "\n").encode()}
    files |= {} if resize == "stretch" else {flatbuffer.RESIZE_FILE: resize.encode()}
    return flatbuffer.with_associated_files(content, files)


def _put_elu_in_int8(file) -> bool:
    """Have each elu that the converter left in float read and write int8, as LiteRT and Micro can; whether there was one."""
    graph, kind = file.subgraphs[0], functools.partial(flatbuffer.operator_name, file)
    readers = Counter(number for operator in graph.operators for number in operator.inputs)
    makers, count = {operator.outputs[0]: operator for operator in graph.operators}, len(graph.operators)
    for after in [operator for operator in graph.operators if kind(operator) == "QUANTIZE"]:
        elu = makers.get(after.inputs[0])
        before = elu and makers.get(elu.inputs[0])
        is_elu = before and (kind(elu), kind(before)) == ("ELU", "DEQUANTIZE")
        if is_elu and readers[elu.inputs[0]] == readers[elu.outputs[0]] == 1:
            for unused, number in ((elu.inputs[0], before.inputs[0]), (elu.outputs[0], after.outputs[0])):
                graph.tensors[unused] = graph.tensors[number]  # a float one would be taken for one that is computed
            elu.inputs, elu.outputs = before.inputs, after.outputs
            graph.operators = [operator for operator in graph.operators if operator not in (before, after)]
    return len(graph.operators) < count


def _warn_of_float(file, model) -> None:
    """Warn of operators that the converter left in float, by the layers that their outputs are named after."""
    names, found = {layer.name for layer in model.layers}, {}
    for operator in file.subgraphs[0].operators:
        output = file.subgraphs[0].tensors[operator.outputs[0]]
        kind = flatbuffer.operator_name(file, operator)
        if flatbuffer.tensor_type(output) == "FLOAT32" and kind != "DEQUANTIZE":
            text = flatbuffer.text_of(output.name)
            layer = next((part for part in re.split("[/;]", text) if part in names), text).removeprefix("quant_")
            found.setdefault(layer, []).append(kind)
    if found:
        where = ", ".join(f"{layer} ({', '.join(dict.fromkeys(kinds))})" for layer, kinds in found.items())
        warnings.warn(
            f"operators of the layers {where} stay in float in the .tflite: they are slower, take more RAM, and few microcontrollers "
            "have kernels for them; use ReLU or ReLU6 there, or QAT in the place of PTQ or the reverse",
            RuntimeWarning,
            stacklevel=3,
        )


def with_full_range_pixels(images: np.ndarray) -> np.ndarray:
    """Copy calibration images, with a pixel value of 0 and one of 255 in the first: the input's range becomes 0..1."""
    images = images.copy()
    images[0, 0, 0, 0], images[0, -1, -1, -1] = 0, 255
    return images


def write_saved_model(model: keras.Model, folder: Path) -> int:
    """Write a SavedModel with the signature `image` float32 (batch, height, width, channels) in 0..1 -> `logits`.

    Grouped convolutions in it are TensorFlow's native ones, not XLA's. `folder` is new.

    Returns:
        The bytes of all its files.

    Raises:
        FileExistsError: `folder` is there already.
    """
    check_new(folder)
    module = tf.Module()
    module.variables_used = model.variables
    signature = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    module.predict = tf.function(lambda image: {"logits": model(image, training=False)}, input_signature=[signature])
    with atomic_folder(folder) as aside, inference_kernels(model), quiet_notices():
        tf.saved_model.save(module, str(aside), signatures={"serving_default": module.predict})
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
