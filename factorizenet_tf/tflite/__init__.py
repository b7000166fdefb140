"""A .tflite without TensorFlow: run, read, written, timed, regrouped, exported."""
