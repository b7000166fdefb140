"""The KerasTuner tuner whose trial is a whole training: float, QAT, int8, measured on validation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from .._keras import keras, tf
from ..cost import count_macs
from ..data import Dataset
from ..files import locked
from ..models.inherit import inherit
from ..models.quantize import is_quantize_aware
from ..recipe import Recipe, recipe_for
from ..requirement import Requirement
from ..runs import CHECKPOINT_FILE, Run, check_same_run, dataset_fingerprint, load_run, open_folder, read_checkpoint
from ..spec import ModelSpec
from ..training.loop import NanLossError
from ..training.train import check_data, train
from . import chief
from ._keras_tuner import Trial, TrialStatus, errors, keras_tuner
from .oracle import PARENT, THRESHOLD, FactorizationOracle, identity_of, metrics_of, spec_of
from .space import MeasuredCosts, Space

__all__ = ["OBJECTIVES", "FactorizationTuner", "GivenUp", "Watch", "check_search", "float_curve", "space_of"]

OBJECTIVES = {
    "val_float_accuracy": "float",
    "val_ptq_per_tensor_accuracy": "ptq_per_tensor",
    "val_ptq_per_channel_accuracy": "ptq_per_channel",
    "val_qat_accuracy": "qat",
    "val_int8_accuracy": "tflite",
}  # metric -> precision in a run's metrics


def space_of(oracle: keras_tuner.Oracle, spec: ModelSpec | None) -> Space:
    """What the oracle searches: its own space, or a stock oracle's widths with the stages of `spec`.

    Raises:
        ValueError: a stock oracle without a spec, or a spec that is not the oracle's.
    """
    if isinstance(oracle, FactorizationOracle):
        if spec is not None and spec != oracle.space.spec:
            raise ValueError(f"spec is {spec}, the oracle's is {oracle.space.spec}; leave it out")
        return oracle.space
    if spec is None:
        raise ValueError(f"a {type(oracle).__name__} knows no net; give spec=")
    widths = next((tuple(hp.values) for hp in oracle.hyperparameters.space if hp.name == "width"), (spec.width,))
    return Space(spec, widths)


def check_search(
    oracle: keras_tuner.Oracle, spec: ModelSpec, dataset: Dataset, recipe: Recipe, requirement: Requirement | None
) -> None:
    """Raise ValueError where they do not fit together, with the value and the remedy."""
    kind = type(oracle).__name__
    if requirement is not None and isinstance(oracle, FactorizationOracle):
        raise ValueError(f"a {kind} has its own requirement; leave {requirement} out")
    if requirement is not None and requirement.min_accuracy is not None:
        raise ValueError(
            f"min_accuracy is {requirement.min_accuracy}; a {kind} looks for the highest accuracy: leave it out, or use a FactorizationOracle"
        )
    if getattr(oracle, "max_epochs", recipe.epochs) != recipe.epochs:
        raise ValueError(
            f"the {kind}'s max_epochs is {oracle.max_epochs}, the recipe's epochs {recipe.epochs}; make them equal"
        )
    if oracle.objective.name not in OBJECTIVES:
        raise ValueError(f"the objective is {oracle.objective.name!r}; it must be one of {', '.join(OBJECTIVES)}")
    if not recipe.qat_epochs:
        raise ValueError("the recipe has no QAT; use qat_epochs of at least 1, a search compares int8 nets")
    check_data(spec, dataset)


class GivenUp(Exception):  # noqa: N818 (no error: an outcome)
    """The float training was given up, or has the epochs that were asked for; its checkpoint stays."""


class Watch(keras.callbacks.Callback):
    """Raises `GivenUp` after the first float epoch at which the best accuracy so far is below the threshold, or the last that is wanted.

    Args:
        folder: of the run; a run that goes on is judged by the epochs it has, too.
        threshold: validation accuracy (0..1) by epoch; empty: never.
        tell: called with (phase, epoch, validation accuracy) after each epoch, or None.
        until: float epochs that are wanted; None: all.
    """

    def __init__(self, folder: Path, threshold: Sequence[float], tell=None, until: int | None = None):
        super().__init__()
        self.until = until
        self.threshold = tuple(threshold)
        self.curve = float_curve(folder)
        self._tell = tell

    def check(self) -> None:
        """Raises GivenUp where the epochs so far are hopeless or enough."""
        epoch = len(self.curve)
        if self.until is not None and epoch >= self.until:
            raise GivenUp
        if 0 < epoch < len(self.threshold) and max(self.curve) < self.threshold[epoch - 1]:
            raise GivenUp

    def on_epoch_end(self, epoch, logs=None):
        """Keras calls it, with epochs from 0."""
        phase = "qat" if is_quantize_aware(self.model) else "float"
        if self._tell is not None:
            self._tell(phase, epoch + 1, logs["val_accuracy"])
        if phase == "float":
            self.curve.append(logs["val_accuracy"])
            self.check()


def float_curve(folder: Path) -> list[float]:
    """Validation accuracy after each float epoch that a run's folder holds; empty where there is no run yet."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return []
    return [row["val_accuracy"] for row in read_checkpoint(path).history if row["phase"] == "float"]


SEARCH_FILE = "search.json"
DATASET_FILE = "dataset.json"
ORACLE_FILE = "oracle.json"
LOCK_FILE = ".lock"
EPOCHS, CONTINUED = (
    "tuner/epochs",
    "tuner/trial_id",
)  # what Hyperband tells a trial: its epochs, the one it goes on from
MOST_TRIALS = 1_000_000


class FactorizationTuner(keras_tuner.Tuner):
    """Trains what an oracle proposes, each net in its trial's folder, where a killed training goes on.

    With a `FactorizationOracle`, or a stock one over `search_space(spec)`; Hyperband's trials go on where the one that
    they continue was held after its epochs, and count by float accuracy until they are trained to the end. Under KerasTuner's environment variables
    KERASTUNER_TUNER_ID (chief, worker0, ...), KERASTUNER_ORACLE_IP and KERASTUNER_ORACLE_PORT it is a chief or one of
    several workers, which share `directory`.

    Args:
        oracle: what proposes.
        dataset: from `load_dataset(..., input_shape=spec.input_shape)`; nets are compared on its validation split.
        spec: with a stock oracle, the spec whose stages it searches.
        requirement: with a stock oracle, budgets: a net over them counts as of accuracy 0 and is not trained. Bytes,
            RAM and latency are measured as by a `FactorizationOracle`.
        recipe: of each trial; None for the data set's own. Needs QAT.
        inherit: start a net from the trained weights of the one it was made from.
        prune: give up trainings that the oracle's threshold calls hopeless.
        callbacks: tf_keras callbacks for each training.
        progress: a `SearchProgress`, or None.
        directory, project_name: where trials and state are kept; the same arguments go on there.
        overwrite: delete what is there first.

    Raises:
        ValueError: data, recipe, objective and space do not fit, the folder holds another search (the difference is
            named), or one of its files is damaged. A worker says so in `search`, once its chief answers.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        dataset: Dataset,
        *,
        spec: ModelSpec | None = None,
        requirement: Requirement | None = None,
        recipe: Recipe | None = None,
        inherit: bool = False,
        prune: bool = True,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        progress=None,
        directory: str | os.PathLike = ".",
        project_name: str = "search",
        overwrite: bool = False,
    ):
        self.recipe = recipe or recipe_for(dataset.name)
        self.space = space_of(oracle, spec)
        self.requirement = requirement
        self.dataset = dataset
        self.inherit, self.prune = inherit, prune
        self.callbacks, self.progress = tuple(callbacks), progress
        check_search(oracle, self.space.spec, dataset, self.recipe, requirement)
        self.costs = MeasuredCosts(() if requirement is None else requirement.limits)
        self._own_oracle = oracle
        super().__init__(oracle, directory=os.fspath(directory), project_name=project_name, overwrite=overwrite)
        folder = Path(self.project_dir)
        walked = isinstance(oracle, FactorizationOracle)
        costs = oracle.costs if walked else self.costs
        costs.labels = dataset.class_names
        if self._is_worker():
            self.oracle = chief.patient_client(self.oracle, has_ended=chief.end_watch(folder))
            return
        open_folder(folder, self._identity(oracle), "search")
        self.costs.open(folder)
        if (folder / ORACLE_FILE).exists() or (walked and any(folder.glob("trial_*/trial.json"))):
            oracle.reload()
        else:
            oracle.save()

    def _identity(self, oracle):
        if isinstance(oracle, FactorizationOracle):
            what = oracle.identity()
        else:
            what = identity_of(self.space, self.requirement, oracle.objective.name)
        fields = {
            "oracle": type(oracle).__name__,
            **what,
            "inherit": self.inherit,
            "prune": self.prune,
            **{f"recipe_{name}": value for name, value in dataclasses.asdict(self.recipe).items()},
        }
        return {SEARCH_FILE: json.dumps(fields, indent=2) + "\n", DATASET_FILE: dataset_fingerprint(self.dataset)}

    def search(self) -> None:
        """Run trials until the oracle has no more; as chief, answer the workers until then.

        Raises:
            ValueError: no net fits the requirement, or the chief's search is another than this worker's.
            RuntimeError: three trials failed in a row, one crashed on a worker, or another process searches in the folder.
            ConnectionError: the chief stays away.
            OSError: the disk is full.
            Exception: what user code or a stock oracle raised, as it was; the trial is done again by the next search.
        """
        if self._is_worker():
            with contextlib.suppress(chief.SearchEndedError):
                self._work_for_chief()
            return
        with _alone(Path(self.project_dir)):
            if not chief.is_chief():
                self._work()
            else:
                self._serve_workers()
        failure = getattr(self._own_oracle, "failure", None)
        if failure is not None:
            raise failure

    def _work_for_chief(self):
        self.oracle.get_space()  # once the chief answers it has claimed the folder
        check_same_run(Path(self.project_dir), self._identity(self._own_oracle), "search")
        self.costs.open(Path(self.project_dir))
        self._work()

    def _serve_workers(self):
        is_walk = isinstance(self._own_oracle, FactorizationOracle)
        raised = (chief.serve if is_walk else chief.serve_stock)(self._own_oracle)
        chief.say_ended(Path(self.project_dir))
        if raised is not None:
            raise raised

    def _work(self):
        self.on_search_begin()
        while True:
            self.pre_create_trial()
            trial = self.oracle.create_trial(self.tuner_id)
            if trial.status == TrialStatus.STOPPED:
                break
            if trial.status == TrialStatus.IDLE:
                time.sleep(chief.POLL_SECONDS)
                continue
            self.on_trial_begin(trial)
            self._run_and_end(trial)
        self.on_search_end()

    def _run_and_end(self, trial):
        try:
            if self._is_worker():
                with chief.heartbeat(self.oracle, trial.trial_id):
                    metrics = self.run_trial(trial)
            else:
                metrics = self.run_trial(trial)
            if self._own_oracle.objective.name not in metrics:
                raise ValueError(f"run_trial gave no {self._own_oracle.objective.name}, but {', '.join(metrics)}")
            self.oracle.update_trial(trial.trial_id, metrics)
            trial.status = TrialStatus.COMPLETED
        except errors.FailedTrialError:
            trial.status, trial.message = TrialStatus.FAILED, traceback.format_exc()
        except Exception:
            trial.status, trial.message = TrialStatus.INVALID, traceback.format_exc()
            with contextlib.suppress(ConnectionError):  # of a chief that is gone: the user's own error matters more
                self.oracle.end_trial(trial)
            raise
        self.on_trial_end(trial)

    def run_trial(self, trial: Trial) -> dict[str, float]:
        """Train a net and give its metrics: validation accuracy by precision, and by float epoch; costs.

        Raises:
            keras_tuner.errors.FailedTrialError: the loss was not finite or memory ran out; the search goes on.
        """
        values = trial.hyperparameters.values
        spec = spec_of(self.space, values)
        objective = self._own_oracle.objective.name
        macs = count_macs(spec)
        if self.requirement is not None and self._is_over(spec, macs):
            return metrics_of(objective, 0.0, [], pruned=True) | {"macs": macs}
        folder = self.run_folder(trial.trial_id)
        if values.get(CONTINUED) and not folder.exists():
            _copy_run(self.run_folder(values[CONTINUED]), folder)
        until = values.get(EPOCHS, self.recipe.epochs)
        threshold = tuple(map(float, values.get(THRESHOLD, "").split())) if self.prune else ()
        tell = self.progress and self.progress.epoch
        watch = Watch(folder, threshold, tell, until if until < self.recipe.epochs else None)
        if self.progress is not None:
            self.progress.begin(trial.trial_id, spec, self.recipe, values, len(watch.curve))
        try:
            watch.check()
            start = self._inherited(values.get(PARENT, ""), spec)
            run = train(
                spec,
                self.dataset,
                out=folder,
                recipe=self.recipe,
                initial=start,
                callbacks=[*self.callbacks, watch],
                verbose=False,
            )
        except GivenUp:
            metrics = metrics_of(objective, max(watch.curve), watch.curve, pruned=True) | {"macs": macs}
        except NanLossError as error:
            raise errors.FailedTrialError(str(error)) from error
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            raise errors.FailedTrialError(f"{spec.name} does not fit into memory: {str(error)[:200]}") from error
        else:
            metrics = _metrics(objective, run, float_curve(folder))
        finally:
            keras.backend.clear_session()
        if self.progress is not None:
            self.progress.end(spec, metrics[objective], bool(metrics["pruned"]))
        return metrics

    def _is_over(self, spec, macs):
        costs = {"macs": macs}
        if self.requirement.excess(costs) is None:
            costs |= self.costs.of(spec)
        return self.requirement.excess(costs) is not None

    def _inherited(self, parent_id, spec):
        """The model to start from, or None: the same at each call for a trial."""
        if not self.inherit or not parent_id:
            return None
        folder = self.run_folder(parent_id)
        parent = load_run(folder)
        if parent.spec.width != spec.width:
            return None
        return inherit(parent.float_model(), parent.spec, spec, seed=self.recipe.seed)

    def run_folder(self, trial_id: str) -> Path:
        """Where a trial's training is: after its end a run that `load_run` takes."""
        return Path(self.project_dir) / f"trial_{trial_id}" / "run"

    def load_run(self, trial: Trial) -> Run:
        """The finished training of a trial. Raises FileNotFoundError where it was given up or failed."""
        return load_run(self.run_folder(trial.trial_id))

    def load_model(self, trial: Trial) -> keras.Model:
        """The quantization-aware tf_keras model of a finished trial; `load_run(trial).int8_model()` is the .tflite."""
        return self.load_run(trial).qat_model()

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """The best nets, best first, of the trials that were trained to their end, as `load_model` gives them."""
        trials = self.oracle.get_best_trials(MOST_TRIALS)
        ended = [trial for trial in trials if (self.run_folder(trial.trial_id) / "metrics.json").is_file()]
        return [self.load_model(trial) for trial in ended[:num_models]]

    def save(self):
        """Write the oracle's state; the tuner has none of its own."""
        if not self._is_worker():
            self.oracle.save()


@contextlib.contextmanager
def _alone(folder):
    """Held by the one process that searches in a folder, or is its chief; freed when that ends, killed or not."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK_FILE, 0))
        except TimeoutError:
            raise RuntimeError(
                f"another process searches in {folder}; wait for its end, or give another folder"
            ) from None
        yield


def _copy_run(source, folder):
    """Copy a run that another trial goes on with, whole or not at all."""
    if source.exists():
        aside = folder.with_name(f"{folder.name}.aside")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        aside.replace(folder)


def _metrics(objective, run, curve):
    accuracies = {metric: run.metrics["accuracy"]["validation"][key] for metric, key in OBJECTIVES.items()}
    return {
        **metrics_of(objective, accuracies[objective], curve, pruned=False),
        **accuracies,
        "macs": run.metrics["macs"],
        "size_bytes": run.metrics["size_bytes"],
        "latency_ms": run.int8_model().latency_ms().median_ms,
        "seconds": run.metrics["training_seconds"],
    }
