"""Run an int8 .tflite on LiteRT: predictions, latency, operators, labels. Needs no TensorFlow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..console import quiet_native_stderr
from ..data import check_images
from .flatbuffer import LABELS_FILE, associated_files

__all__ = ["Int8Model", "Latency", "quantize_pixels"]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference at batch 1: median, 10th and 90th percentile over `runs` runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int


class Int8Model:
    """An int8 image classifier run by ai-edge-litert with its XNNPACK kernels.

    Args:
        path_or_bytes: a .tflite file or its content, int8 in and out, input (batch, height, width, channels).
        threads: of one inference.

    Attributes:
        input_shape: (height, width, channels).
        num_classes: how many logits.
        size_bytes: of the file.
        input_quantization: (scale, zero point): an int8 input q stands for scale * (q - zero point).
        output_quantization: the same of the logits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no .tflite, or not int8 in and out.
    """

    def __init__(self, path_or_bytes: str | os.PathLike | bytes, *, threads: int = 1):
        if isinstance(path_or_bytes, bytes):
            self._content, self._source = path_or_bytes, "the given bytes"
        else:
            path = Path(path_or_bytes)
            if not path.is_file():
                raise FileNotFoundError(f"no .tflite file {path}")
            self._content, self._source = path.read_bytes(), str(path)
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"threads is {threads!r}; it must be an int of at least 1")
        self.threads = threads
        try:
            self._interpreter = self._new_interpreter()
        except ValueError:  # XNNPACK refuses scales that a dead branch leaves; LiteRT's own kernels do not
            self._interpreter = self._plain()
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0]["shape"]) != 4 or len(outputs[0]["shape"]) != 2:
            raise ValueError(
                f"{self._source} is no image classifier: it needs one input (batch, height, width, channels) and one output (batch, classes)"
            )
        types = inputs[0]["dtype"].__name__, outputs[0]["dtype"].__name__
        if types != ("int8", "int8"):
            raise ValueError(
                f"{self._source} takes {types[0]} and gives {types[1]}; it must be int8 in and out, as to_tflite "
                "and `factorizenet export --io int8` write it"
            )
        self.input_shape = tuple(int(n) for n in inputs[0]["shape"][1:])
        self.num_classes, self.size_bytes = int(outputs[0]["shape"][1]), len(self._content)
        self.input_quantization, self.output_quantization = inputs[0]["quantization"], outputs[0]["quantization"]
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators' names in order of execution, e.g. ("CONV_2D", ..., "FULLY_CONNECTED")."""
        return tuple(name for name, _ in self.operator_outputs)

    @property
    def operator_outputs(self) -> tuple[tuple[str, str], ...]:
        """(operator, name of its output tensor; "" in a slim file) in order of execution."""
        plain = self._plain()
        names = {tensor["index"]: tensor["name"] for tensor in plain.get_tensor_details()}
        return tuple((op["op_name"], names[op["outputs"][0]]) for op in plain._get_ops_details())

    @property
    def tensor_types(self) -> frozenset[str]:
        """The types of all tensors; an all-integer model has int8 and int32 (biases, shapes) only."""
        return frozenset(t["dtype"].__name__ for t in self._plain().get_tensor_details())

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The class names kept in the file, or None.

        Raises:
            ValueError: they are damaged.
        """
        try:
            content = associated_files(self._content).get(LABELS_FILE)
            text = None if content is None else content.decode().replace("\r\n", "\n").removesuffix("\n")
            return None if text is None else tuple(text.split("\n"))
        except ValueError as error:
            raise ValueError(f"the labels in {self._source} are damaged ({error}); convert the model again") from None

    def predict(self, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Logits float32 (n, classes) of images uint8 (n, height, width, channels).

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another rank or size, or batch_size is below 1.
        """
        scale, zero_point = self.output_quantization
        quantized = self.predict_quantized(images, batch_size=batch_size)
        return np.float32(scale) * (quantized.astype(np.float32) - zero_point)

    def predict_quantized(self, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """The same as int8 (n, classes), before dequantization."""
        return self._run(self._interpreter, images, batch_size)

    def predict_reference(self, images: np.ndarray) -> np.ndarray:
        """As `predict_quantized`, by LiteRT's reference kernels: the rounding that TensorFlow Lite Micro's share."""
        return self._run(self._new_interpreter("BUILTIN_REF"), images, 1)

    def _run(self, interpreter, images, batch_size):
        check_images(images, self.input_shape)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        batch_size = min(batch_size, len(images))
        inputs = self._quantized(images)
        outputs = np.empty((len(images), self.num_classes), np.int8)
        for start in range(0, len(images), batch_size):
            batch = inputs[start : start + batch_size]
            self._resize(interpreter, len(batch))
            interpreter.set_tensor(self._input, batch)
            interpreter.invoke()
            outputs[start : start + len(batch)] = interpreter.get_tensor(self._output)
        return outputs

    def latency_ms(self, *, runs: int = 200, warm_up: int = 20) -> Latency:
        """Time one inference at batch 1 on a synthetic image, input copy and output copy included."""
        if runs < 1:
            raise ValueError(f"runs is {runs}; it must be at least 1")
        infer, times = self.inference(), []
        for _ in range(warm_up + runs):
            start = time.perf_counter()
            infer()
            times.append(1e3 * (time.perf_counter() - start))
        p10, median, p90 = (float(v) for v in np.percentile(times[warm_up:], (10, 50, 90)))
        return Latency(median, p10, p90, runs, self.threads)

    def inference(self) -> Callable[[], np.ndarray]:
        """A function to time: one inference at batch 1 on a synthetic image, input copy and output copy included."""
        self._resize(self._interpreter, 1)
        image = np.random.default_rng(0).integers(-128, 128, (1, *self.input_shape), np.int8)

        def infer():
            self._interpreter.set_tensor(self._input, image)
            self._interpreter.invoke()
            return self._interpreter.get_tensor(self._output)

        return infer

    def _quantized(self, images):
        return quantize_pixels(images, self.input_quantization)

    def _resize(self, interpreter, batch):
        if interpreter.get_input_details()[0]["shape"][0] != batch:
            interpreter.resize_tensor_input(self._input, (batch, *self.input_shape))
            interpreter.allocate_tensors()

    def _new_interpreter(self, kernels="AUTO"):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        try:
            with quiet_native_stderr():
                interpreter = Interpreter(
                    model_content=self._content,
                    num_threads=self.threads,
                    experimental_op_resolver_type=OpResolverType[kernels],
                )
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{self._source} is damaged or no .tflite ({reason}); convert the model again") from None
        return interpreter

    def _plain(self):
        """An interpreter without XNNPACK, which would show as one delegate operator."""
        return self._new_interpreter("BUILTIN_WITHOUT_DEFAULT_DELEGATES")


def quantize_pixels(images: np.ndarray, quantization: tuple[float, int]) -> np.ndarray:
    """Quantize pixels: int8 of images uint8, each pixel p standing for p / 255.

    Args:
        images: of any shape.
        quantization: (scale, zero point) of the model's input; at 1/255 and -128 it is a subtraction of 128.
    """
    scale, zero_point = quantization
    if zero_point == -128 and abs(scale * 255 - 1) < 1e-6:
        return (images ^ 0x80).view(np.int8)
    table = np.clip(np.round(np.arange(256) / 255 / scale) + zero_point, -128, 127).astype(np.int8)
    return table[images]
