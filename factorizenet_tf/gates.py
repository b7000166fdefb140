"""What a training must show before it is published."""

from __future__ import annotations

from .run import Run

__all__ = ["refusals"]

LEAST_AGREEMENT = 0.98  # top-1, of the .tflite with its QAT Keras model
LARGEST_LOSS = 0.01  # of validation accuracy, from float to the .tflite
# int8 kernels that LiteRT and TensorFlow Lite for Microcontrollers both have; none of them computes in float
OPERATORS = frozenset(
    (
        "ADD",
        "AVERAGE_POOL_2D",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "FULLY_CONNECTED",
        "MAX_POOL_2D",
        "MEAN",
        "PAD",
        "RESHAPE",
    )
)


def refusals(run: Run) -> list[str]:
    """Why a run must not be published, a line for each reason; empty where it may be."""
    metrics = run.metrics
    if "qat" not in metrics["accuracy"]["test"]:
        return [f"the run in {run.folder} has no QAT phase; train it with qat_epochs of at least 1"]
    if not {"machine", "versions"} <= metrics.keys():
        return [f"the run in {run.folder} does not say its machine and versions; train it with this version"]
    reasons = []
    agreement = metrics["agreement"]
    if agreement["top1"] < LEAST_AGREEMENT:
        reasons.append(
            f"its .tflite and its QAT Keras model agree on {100 * agreement['top1']:.1f} % of {agreement['images']} "
            f"images (at least {100 * LEAST_AGREEMENT:g} % is asked for); convert it again, or look for the layer with analyze"
        )
    validation, images = metrics["accuracy"]["validation"], metrics["images"]["validation"]
    loss = validation["float"] - validation["tflite"]
    allowed = max(LARGEST_LOSS, 3 / images)  # of a small split, three images
    if loss > allowed:
        reasons.append(
            f"int8 is {100 * loss:.2f} points below float on validation (at most {100 * allowed:.2f} are allowed); "
            "train it with more qat_epochs"
        )
    strange = sorted(set(metrics["operators"]) - OPERATORS)
    if strange:
        reasons.append(f"its .tflite has the operators {', '.join(strange)}, which small devices do not run in int8")
    return reasons
