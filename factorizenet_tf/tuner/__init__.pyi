from .oracle import FactorizationOracle, Requirement, search_space
from .tuner import FactorizationTuner
