"""The runtimes that a .tflite must give the same numbers on: LiteRT and TensorFlow Lite Micro."""

import numpy as np

from factorizenet_tf.tflite.latency import new_interpreter


def on_litert(content, images, kernels="AUTO"):
    """The outputs of inputs (n, ...), one after the other, by LiteRT."""
    interpreter = new_interpreter(content, kernels=kernels)
    (input_,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    results = []
    for image in images:
        interpreter.set_tensor(input_["index"], image[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(output["index"]))
    return np.concatenate(results)


def on_micro(content, images):
    """The same by TensorFlow Lite Micro's reference kernels."""
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(content, arena_size=2**20)
    results = []
    for image in images:
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        results.append(interpreter.get_output(0))
    return np.concatenate(results)
