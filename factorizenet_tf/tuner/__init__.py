"""Find the best factorized net for a requirement: a progressive search, driven by KerasTuner.

    spec = fnet.ModelSpec(width=16)
    oracle = fnet.tuner.FactorizationOracle(spec, max_macs=4_000_000)
    tuner = fnet.tuner.FactorizationTuner(oracle, fnet.load_dataset("cifar10"), directory="runs/search")
    tuner.search()
    tuner.get_best_models()

The first use of these names loads KerasTuner and TensorFlow. `factorizenet_tf.tuner.progressive` is the search itself, which
needs neither; `search.search` also writes tables and a summary, and `ray_executor` trains on many machines.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
