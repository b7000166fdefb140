from .model_space import ModelSpace
from .oracle import FactorizationOracle, Requirement, search_space
from .tuner import FactorizationTuner
