"""Nets where they are used: exported for TensorFlow Serving, served at once, and asked about image files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
