"""The command, or the Python, that trains a run again."""

from __future__ import annotations

import dataclasses

from .baselines import ResNet8
from .recipe import recipe_for
from .run import IN_MEMORY, Run
from .spec import DEFAULT_STAGES

__all__ = ["training_command"]


def training_command(run: Run, dataset: dict) -> str:
    """What trains the run again: a command where its options say all, else Python."""
    spec, recipe = run.spec, run.recipe
    default = recipe_for(dataset["name"])
    changed = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if getattr(recipe, field.name) != getattr(default, field.name)
    }
    options = ("epochs", "qat_epochs", "batch_size", "learning_rate", "seed")
    is_baseline = isinstance(spec, ResNet8)
    initial = run.metrics.get("initial")
    plain = set(changed) <= set(options) and initial != IN_MEMORY
    if not plain or dataset["name"] == "arrays":
        start = "model" if initial == IN_MEMORY else repr(initial)
        arguments = "".join(f", {name}={value!r}" for name, value in changed.items())
        return (
            f"fnet.train({_expression(spec)}, "
            f"fnet.load_dataset({dataset['name']!r}, input_shape={spec.input_shape}), "
            f"out='runs/{spec.name}', recipe=fnet.recipe_for({dataset['name']!r}{arguments})"
            f"{f', initial={start}' if initial else ''})"
        )
    parts = ["factorizenet train"]
    if initial:
        parts.append(f"--from {initial}")
    elif is_baseline:
        parts.append("--baseline resnet8")
    else:
        level = ".".join(map(str, spec.level)) if isinstance(spec.level, tuple) else spec.level
        parts.append(f"--level {level}")
        if spec.width != 16:
            parts.append(f"--width {spec.width}")
        if spec.stages != DEFAULT_STAGES:
            parts.append("--stages " + ",".join(f"{s.blocks}x{s.stride}" for s in spec.stages))
    parts.append(f"--dataset {dataset['name']}")
    height, width, channels = spec.input_shape
    if height == width and dataset["name"] == "digits" and spec.input_shape != (32, 32, 3):
        parts.append(f"--size {height} --channels {channels}")
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in changed.items()]
    return " ".join([*parts, f"--out runs/{spec.name}"])


def _expression(spec) -> str:
    """Python that builds the spec."""
    shared = f"input_shape={spec.input_shape}, num_classes={spec.num_classes}"
    if isinstance(spec, ResNet8):
        return f"fnet.baselines.ResNet8({shared})"
    stages = tuple(tuple(stage) for stage in spec.stages)
    return f"fnet.ModelSpec({spec.level}, width={spec.width}, {shared}, stages={stages})"
