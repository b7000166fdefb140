"""Run, read, write, time, regroup and export a .tflite without TensorFlow."""
