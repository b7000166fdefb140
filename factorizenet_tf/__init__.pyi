from . import baselines, serving, tuner, zoo
from .analysis.analyze import analyze, compare_levels
from .analysis.tables import Analysis, load_analysis
from .analysis.tracker import DistributionTracker
from .cost import cost_table, count_macs, count_params
from .data import Dataset, Split, load_dataset
from .macro import Stage
from .models.architecture import architecture_of
from .models.build import build
from .models.choose import choose_levels
from .models.convert import to_tflite
from .models.evaluate import Agreement, accuracy, agreement
from .models.factorize import factorization_table, factorize, with_latencies
from .models.keras3 import from_keras3
from .models.quantize import quantize_aware
from .models.weights import FactorizeNet
from .recipe import Recipe, recipe_for, tuning_recipe_for
from .runs import Run, load_run
from .spec import Architecture, ModelSpec, max_level
from .tflite.int8_model import Int8Model, Latency, TFLiteModel
from .training.loop import DivergedError, NanLossError
from .training.train import train
