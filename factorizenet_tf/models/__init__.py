"""From a spec to a tf_keras model: built, inherited, quantized, converted, evaluated."""
