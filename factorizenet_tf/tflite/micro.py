"""Run a .tflite by TensorFlow Lite for Microcontrollers' reference kernels (extra `micro`). Needs no TensorFlow."""

import contextlib
import os
import re
import sys
import tempfile

import numpy as np

from .flatbuffer import operator_name, read_flatbuffer
from .int8_model import quantize_pixels

__all__ = ["arena_bytes", "micro_outputs"]

BRANCHES = {"CALL_ONCE", "IF", "WHILE"}
MAX_ARENA_BYTES = 64 * 2**20  # offered to the interpreter, which reports how much it used


def arena_bytes(content: bytes) -> int:
    """Record peak RAM: the bytes of the arena in which the interpreter has planned an int8 .tflite's tensors.

    The number is that of tflite-micro's x86-64 build with its reference kernels. Optimized kernels need scratch buffers in
    addition (`micro_kernels.estimate_arenas`).

    Raises:
        ModuleNotFoundError: tflite-micro is not installed.
        ValueError: it cannot run the file.
    """
    with _interpreter(content) as (interpreter, captured):
        interpreter.print_allocations()
    total = re.search(r"Arena allocation total (\d+) bytes", captured())
    if total is None:
        raise ValueError(f"tflite-micro recorded no arena ({captured()[:200]!r}); install another version of it")
    return int(total[1])


def micro_outputs(content: bytes, images: np.ndarray) -> np.ndarray:
    """Compute outputs int8 (n, classes) of images uint8 (n, height, width, channels) by tflite-micro's reference kernels.

    Raises as `arena_bytes`.
    """
    with _interpreter(content) as (interpreter, _):
        parameters = interpreter.get_input_details(0)["quantization_parameters"]
        quantization = float(parameters["scales"][0]), int(parameters["zero_points"][0])
        outputs = []
        for image in quantize_pixels(images, quantization):
            interpreter.set_input(image[None], 0)
            interpreter.invoke()
            outputs.append(interpreter.get_output(0))
    return np.concatenate(outputs)


@contextlib.contextmanager
def _interpreter(content):
    """Give an interpreter, and a function that reads behind the block what it wrote; what it refuses is a ValueError."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ModuleNotFoundError:
        raise ModuleNotFoundError("this needs tflite-micro: pip install 'factorizenet_tf[micro]'") from None
    captured = None
    try:
        model = read_flatbuffer(content)
        inner = {operator_name(model, operator) for graph in model.subgraphs[1:] for operator in graph.operators}
        if inner & BRANCHES:  # tflite-micro ends the process with a segmentation fault
            raise ValueError(f"{', '.join(sorted(inner & BRANCHES))} in a subgraph behind the first one")
        with _captured_stderr() as captured:
            yield runtime.Interpreter.from_bytes(content, arena_size=MAX_ARENA_BYTES), captured
    except Exception as error:  # the interpreter and the reader of flatbuffers each raise their own
        said = captured() if captured else ""
        reason = " ".join(f"{error}: {said}".split()).removesuffix(":")
        raise ValueError(f"TensorFlow Lite for Microcontrollers cannot run the model: {reason}") from None


@contextlib.contextmanager
def _captured_stderr():
    """Within the block what C++ writes to stderr goes to a file; gives a function that reads it afterwards."""
    text = ""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            text = file.read().decode(errors="replace")
