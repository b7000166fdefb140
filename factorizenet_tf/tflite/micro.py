"""What TensorFlow Lite for Microcontrollers says of a .tflite (extra `micro`). Needs no TensorFlow."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile

import numpy as np

__all__ = ["arena_bytes", "micro_outputs"]

ARENA_MOST = 64 * 2**20  # what is offered to the interpreter; it says what it took


def arena_bytes(content: bytes) -> int:
    """Peak RAM: the arena's bytes that the interpreter records after it planned an int8 .tflite's tensors.

    Measured in tflite-micro's x86-64 Python build; on a 32-bit target structures with pointers are smaller.

    Raises:
        ModuleNotFoundError: tflite-micro is not installed.
        ValueError: it cannot run the file.
    """
    with _captured_stderr() as captured:
        _interpreter(content).print_allocations()
    found = re.search(r"Arena allocation total (\d+) bytes", captured())
    if found is None:
        raise ValueError(f"tflite-micro recorded no arena; it said: {captured()[:200]!r}")
    return int(found[1])


def micro_outputs(content: bytes, images: np.ndarray) -> np.ndarray:
    """Outputs int8 (n, classes) of tflite-micro's reference kernels for images uint8 (n, height, width, channels).

    The file's input is int8 with scale 1/255 and zero point -128, as `to_tflite` writes it. Raises as `arena_bytes`.
    """
    with _captured_stderr():
        interpreter = _interpreter(content)
        outputs = []
        for image in (images ^ 0x80).view(np.int8):
            interpreter.set_input(image[None], 0)
            interpreter.invoke()
            outputs.append(interpreter.get_output(0))
    return np.concatenate(outputs)


def _interpreter(content):
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ModuleNotFoundError:
        raise ModuleNotFoundError("this needs tflite-micro: pip install 'factorizenet_tf[micro]'") from None
    try:
        return runtime.Interpreter.from_bytes(content, arena_size=ARENA_MOST)
    except Exception as error:  # the interpreter and the reader of flatbuffers each raise their own
        raise ValueError(f"TensorFlow Lite for Microcontrollers cannot run the model: {error}") from None


@contextlib.contextmanager
def _captured_stderr():
    """Within the block what C++ writes to stderr goes to a file; gives a function that reads it afterwards."""
    text = ""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: text
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read().decode(errors="replace")
