"""FactorizeNet on TensorFlow."""
