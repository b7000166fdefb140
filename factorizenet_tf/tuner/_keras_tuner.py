"""KerasTuner, imported after `_keras` has decided on Keras and on what TensorFlow says at start-up."""

import keras_tuner
from keras_tuner import errors
from keras_tuner.engine.trial import Trial, TrialStatus

from .. import _keras  # noqa: F401 (first)

__all__ = ["Trial", "TrialStatus", "errors", "keras_tuner"]
