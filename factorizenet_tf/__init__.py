"""FactorizeNet on TensorFlow: find the granularity of depth factorization that suits a budget under int8 quantization.

Implements the strategy of Yun & Wong, "FactorizeNet: Progressive Depth Factorization for Efficient Network
Architecture Exploration Under Quantization Constraints", arXiv 2011.14586. Importing the package loads neither
TensorFlow nor pandas; each name below loads what it needs when it is first used.
"""

import os
from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# TensorFlow reads this variable at its import; unset, it uses oneDNN only on x86 processors with AVX512-VNNI or AMX. Without
# oneDNN it has no gradient for grouped convolutions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

try:
    __version__ = version("factorizenet_tf")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name stands in __init__.pyi
