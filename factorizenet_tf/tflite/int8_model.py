"""Run a .tflite on LiteRT: predictions, latency, operators, labels. Needs no TensorFlow.

`Int8Model` is for int8 nets as this package writes them, `TFLiteModel` for anybody's.
"""

import math
import os
import timeit
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np

from ..data import RESIZES, check_images
from ..pixels import RANGES, Pixels
from .flatbuffer import LABELS_FILE, RESIZE_FILE, associated_files
from .latency import OpenSizeError, new_interpreter

__all__ = ["Int8Model", "Latency", "TFLiteModel", "input_range", "quantize_pixels"]

KERNELS = {"AUTO": "XNNPACK", "BUILTIN_WITHOUT_DEFAULT_DELEGATES": "LiteRT's own"}


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference at batch 1: median, 10th and 90th percentile over `runs` runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int


class TFLiteModel:
    """Anybody's image classifier, run with the input and output types, and at the batch size, of its file.

    A quantized input's scale and zero point tell the pixels' range: 0..255, -1..1, or else 0..1; those of a float input are
    of what its QUANTIZE gives, if there is one.

    Args:
        path_or_bytes: a .tflite file or its content, input (batch, height, width, channels) and output (batch, classes),
            each int8, uint8 or float32.
        threads: of one inference.
        pixels: what the model takes; None: the range that the scale tells, or 0..1 with a warning.

    Attributes:
        input_shape: (height, width, channels).
        num_classes: number of logits, or of probabilities if the file ends in a softmax.
        content, size_bytes: the file's bytes, and their number.
        batch_size: of one inference; None: any.
        input_type, output_type: "int8", "uint8" or "float32".
        input_quantization: (scale, zero point): an input q stands for scale * (q - zero point); (0.0, 0) for float.
        output_quantization: the same of the outputs.
        kernels: "XNNPACK", or "LiteRT's own" if XNNPACK refuses the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no .tflite, no image classifier, or of other types.
    """

    TYPES = ("int8", "uint8", "float32")
    _any_batch = False

    def __init__(self, path_or_bytes: str | os.PathLike | bytes, *, threads: int = 1, pixels: Pixels | None = None):
        if isinstance(path_or_bytes, bytes):
            self.content, self._source = path_or_bytes, "the given bytes"
        else:
            path = Path(path_or_bytes)
            if not path.is_file():
                raise FileNotFoundError(f"no .tflite file {path}; give a path that exists")
            self.content, self._source = path.read_bytes(), str(path)
        if not isinstance(threads, Integral) or threads < 1:
            raise ValueError(f"threads is {threads!r}; it must be an int of at least 1")
        self.threads = int(threads)
        self.kernels = KERNELS["AUTO"]
        try:
            self._interpreter = self._new_interpreter()
        except ValueError:  # XNNPACK refuses scales that a dead branch leaves; LiteRT's own kernels do not
            self._interpreter = self._plain()
            self.kernels = KERNELS["BUILTIN_WITHOUT_DEFAULT_DELEGATES"]
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        shapes = [tuple(int(n) for n in found["shape"]) for found in (*inputs, *outputs)]
        if len(shapes) != 2 or len(shapes[0]) != 4 or math.prod(shapes[1][:-1]) != shapes[0][0]:
            raise ValueError(
                f"{self._source} is no image classifier: it needs one input (batch, height, width, channels) and one output "
                "(batch, classes)"
            )
        self.input_type, self.output_type = inputs[0]["dtype"].__name__, outputs[0]["dtype"].__name__
        if not {self.input_type, self.output_type} <= {*self.TYPES}:
            remedy = "; convert it with tf.float32 as inference_input_type and inference_output_type"
            if len(self.TYPES) == 1:
                remedy = ", as to_tflite and `factorizenet export --io int8` write it"
            raise ValueError(
                f"{self._source} takes {self.input_type} and gives {self.output_type}; it must be {', '.join(self.TYPES)} in "
                f"and out{remedy}"
            )
        if shapes[0][1] in (1, 3) and 3 < shapes[0][2] == shapes[0][3]:
            raise ValueError(
                f"{self._source} takes images of {shapes[0][1:]}, which look like channels first; convert it with channels last"
            )
        self.input_shape, self.batch_size = shapes[0][1:], None if self._any_batch else shapes[0][0]
        self.num_classes, self.size_bytes = shapes[1][-1], len(self.content)
        self.input_quantization, self.output_quantization = inputs[0]["quantization"], outputs[0]["quantization"]
        self._input, self._output = inputs[0]["index"], outputs[0]["index"]
        quantizations = {"input": self.input_quantization, "output": self.output_quantization}
        for what, kind in (("input", self.input_type), ("output", self.output_type)):
            if kind != "float32" and not quantizations[what][0] > 0:
                raise ValueError(
                    f"the {kind} {what} of {self._source} has no scale, so its values have no meaning; convert it again"
                )
        self.pixels = pixels or Pixels(self._range())
        self._affine = self.pixels.affine(self.input_shape[2])

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
            content = associated_files(self.content).get(LABELS_FILE)
            text = None if content is None else content.decode().replace("\r\n", "\n").removesuffix("\n")
            return None if text is None else tuple(text.split("\n"))
        except ValueError as error:
            raise ValueError(f"the labels in {self._source} are damaged ({error}); convert the model again") from None

    @property
    def resize(self) -> str:
        """How images of another aspect ratio are resized, as kept in the file: "stretch", "crop" or "pad".

        Raises:
            ValueError: the file's archive is damaged, or says something else.
        """
        found = associated_files(self.content).get(RESIZE_FILE, b"stretch").decode(errors="replace")
        if found not in RESIZES:
            raise ValueError(f"{self._source} says resize {found!r}, not {', '.join(RESIZES)}; convert the model again")
        return found

    def predict(self, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Compute logits float32 (n, classes) of images uint8 (n, height, width, channels).

        Raises:
            TypeError: the images are not uint8.
            ValueError: they have another rank or size, or batch_size is below 1.
        """
        scale, zero_point = self.output_quantization
        quantized = self.predict_quantized(images, batch_size=batch_size)
        if self.output_type == "float32":
            return quantized
        return np.float32(scale) * (quantized.astype(np.float32) - zero_point)

    def predict_quantized(self, images: np.ndarray, *, batch_size: int = 32) -> np.ndarray:
        """Compute outputs (n, classes) in the file's own type, before dequantization; arguments and errors as `predict`."""
        return self._run(self._interpreter, images, batch_size)

    def predict_reference(self, images: np.ndarray) -> np.ndarray:
        """Compute `predict_quantized` by LiteRT's reference kernels, which round as TensorFlow Lite Micro's do.

        A file with an operator that these lack (ELU) is run by LiteRT's other ones.
        """
        try:
            interpreter = self._new_interpreter("BUILTIN_REF")
        except ValueError:
            interpreter = self._plain()
        return self._run(interpreter, images, 1)

    def watch(self, images: np.ndarray, see: Callable[[Callable[[int], np.ndarray]], None]) -> np.ndarray:
        """Compute `predict_quantized` by LiteRT's own kernels; after each batch call `see` with a function number -> tensor."""
        interpreter = self._new_interpreter("BUILTIN_WITHOUT_DEFAULT_DELEGATES", keeps_all=True)
        return self._run(interpreter, images, 32, see)

    def _run(self, interpreter, images, batch_size, see=None):
        check_images(images, self.input_shape)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        batch_size = self.batch_size or min(batch_size, len(images))
        outputs = np.empty((len(images), self.num_classes), self.output_type)
        for start in range(0, len(images), batch_size):
            batch = self._inputs(images[start : start + batch_size])
            count = len(batch)
            if self.batch_size is None:
                self._resize(interpreter, count)
            elif count < batch_size:
                batch = np.concatenate([batch, np.repeat(batch[:1], batch_size - count, 0)])
            interpreter.set_tensor(self._input, batch)
            interpreter.invoke()
            if see is not None:
                see(interpreter.get_tensor)
            found = interpreter.get_tensor(self._output).reshape(-1, self.num_classes)
            outputs[start : start + count] = found[:count]
        return outputs

    def latency_ms(self, *, runs: int = 200, warm_up: int = 20) -> Latency:
        """Time one inference at batch 1, or the file's own batch size, on synthetic images, copies in and out included.

        Raises:
            ValueError: `runs` is below 1.
        """
        if runs < 1:
            raise ValueError(f"runs is {runs}; it must be at least 1")
        seconds = timeit.repeat(self.inference(), number=1, repeat=warm_up + runs)[warm_up:]
        p10, median, p90 = (1e3 * float(v) for v in np.percentile(seconds, (10, 50, 90)))
        return Latency(median, p10, p90, runs, self.threads)

    def inference(self) -> Callable[[], np.ndarray]:
        """Make a function for timing: one inference as in `latency_ms`."""
        if self.batch_size is None:
            self._resize(self._interpreter, 1)
        shape = (self.batch_size or 1, *self.input_shape)
        image = self._inputs(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

        def infer():
            self._interpreter.set_tensor(self._input, image)
            self._interpreter.invoke()
            return self._interpreter.get_tensor(self._output)

        return infer

    def _inputs(self, images):
        """Convert uint8 images to the input's range and type."""
        scale, offset = (part.astype(np.float32) for part in self._affine)
        if self.input_type == "float32":
            return images * (scale / np.float32(255)) + offset
        step, zero_point = self.input_quantization
        limits = np.iinfo(self.input_type)
        levels = np.arange(256)[:, None] / 255 * self._affine[0] + self._affine[1]
        table = np.clip(np.round(levels / step) + zero_point, limits.min, limits.max).astype(self.input_type)
        return np.stack([table[images[..., channel], channel] for channel in range(images.shape[3])], axis=-1)

    def _range(self) -> str:
        """Name the one of `RANGES` that the input's numbers reach over to within 2 %; else 0..1, with a warning."""
        kind, quantization = self.input_type, self.input_quantization
        if kind == "float32":
            kind, quantization = self._first_quantization()
        name, text = None, "takes floats, of a range that the file does not say"
        if kind in ("int8", "uint8"):
            name, low, high = input_range(kind, quantization)
            text = f"stands for {low:.3g} to {high:.3g}, none of {', '.join(RANGES)}"
        if name is None:
            warnings.warn(
                f"the input of {self._source} {text}; its pixels are assumed to be in 0..1: give those it was trained on by "
                "TFLiteModel's pixels= or, to evaluate, --pixel-range, --pixel-mean and --pixel-deviation; elsewhere use a "
                "net that takes 0..1",
                RuntimeWarning,
                stacklevel=4,
            )
        return name or "0..1"

    def _first_quantization(self):
        """Give (type, quantization) of what a QUANTIZE makes of a float input; the input's own if other operators read it."""
        plain = self._plain()
        tensors = {tensor["index"]: tensor for tensor in plain.get_tensor_details()}
        readers = [op for op in plain._get_ops_details() if self._input in op["inputs"]]
        is_quantized = [op["op_name"] for op in readers] == ["QUANTIZE"]
        found = tensors[readers[0]["outputs"][0] if is_quantized else self._input]
        return found["dtype"].__name__, found["quantization"]

    def _resize(self, interpreter, batch):
        if interpreter.get_input_details()[0]["shape"][0] != batch:
            interpreter.resize_tensor_input(self._input, (batch, *self.input_shape))
            interpreter.allocate_tensors()

    def _new_interpreter(self, kernels="AUTO", **options):
        try:
            return new_interpreter(self.content, self.threads, kernels, **options)
        except OpenSizeError as error:
            raise ValueError(f"{self._source} {error}") from None
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{self._source} is damaged or no .tflite ({reason}); convert the model again") from None

    def _plain(self):
        """An interpreter without XNNPACK, which would show as one delegate operator."""
        return self._new_interpreter("BUILTIN_WITHOUT_DEFAULT_DELEGATES")


class Int8Model(TFLiteModel):
    """An int8 image classifier, run at any batch size; pixels are in 0..1, as in this package's files, or as its scale tells.

    Args:
        path_or_bytes: a .tflite file or its content, int8 in and out, input (batch, height, width, channels).
        threads: of one inference.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, no .tflite, or not int8 in and out.
    """

    TYPES = ("int8",)
    _any_batch = True

    def __init__(self, path_or_bytes: str | os.PathLike | bytes, *, threads: int = 1):
        super().__init__(path_or_bytes, threads=threads)

    def _inputs(self, images):
        return quantize_pixels(images, self.input_quantization)


def input_range(kind: str, quantization: tuple[float, int]) -> tuple[str | None, float, float]:
    """Give the range (a key of `RANGES`, within 2 %, or None) that a quantized type's numbers cover, and its two ends."""
    limits, (scale, zero_point) = np.iinfo(kind), quantization
    low, high = (scale * (limit - zero_point) for limit in (limits.min, limits.max))
    for name, (span, start) in RANGES.items():
        if max(abs(low - start), abs(high - start - span)) <= 0.02 * span:
            return name, low, high
    return None, low, high


def quantize_pixels(images: np.ndarray, quantization: tuple[float, int]) -> np.ndarray:
    """Quantize uint8 pixels to int8, in the range that the quantization covers (see `input_range`), or 0..1.

    Args:
        images: of any shape.
        quantization: (scale, zero point) of the model's input; at 1/255 and -128 it is a subtraction of 128.
    """
    scale, zero_point = quantization
    if zero_point == -128 and abs(scale * 255 - 1) < 1e-6:
        return (images ^ 0x80).view(np.int8)
    span, start = RANGES[input_range("int8", quantization)[0] or "0..1"]
    table = np.clip(np.round((np.arange(256) / 255 * span + start) / scale) + zero_point, -128, 127).astype(np.int8)
    return table[images]
