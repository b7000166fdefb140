"""Train what an oracle proposes: a KerasTuner tuner whose trial is a whole training (float, QAT, int8, validation).

A training is one call, `train_net`, that can be repeated anywhere: it continues after its last whole epoch. The tuner makes
these calls one after the other, or sends all nets of a batch to an executor and waits for them.
"""

import contextlib
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from .._keras import keras, tf
from ..console import Progress
from ..data import Dataset
from ..files import write_bytes, write_text
from ..loading import Source, resolve
from ..models.build import build
from ..models.inherit import inherit
from ..models.quantize import is_quantize_aware
from ..models.weights import copy_weights, fingerprint
from ..recipe import Recipe, check_has_qat, recipe_for, tuning_recipe_for
from ..runs import CHECKPOINT_FILE, START_FILE, Run, dataset_fingerprint, load_run, open_folder, read_checkpoint
from ..spec import Architecture, ModelSpec
from ..training.factorized import begin, load_begun
from ..training.loop import DivergedError
from ..training.train import check_data, train
from .costs import COSTS_FILE, milliseconds
from .oracle import (
    PARENT,
    PRUNED,
    REASON,
    THRESHOLD,
    FactorizationOracle,
    Trial,
    TrialStatus,
    keras_tuner,
    metrics_of,
    space_identity,
)
from .space import NetSpace, Space

__all__ = ["OBJECTIVES", "FactorizationTuner", "StopHopelessTraining", "Training", "TrialPruned", "train_net"]

OBJECTIVES = {
    "val_float_accuracy": "float",
    "val_ptq_per_tensor_accuracy": "ptq_per_tensor",
    "val_ptq_per_channel_accuracy": "ptq_per_channel",
    "val_qat_accuracy": "qat",
    "val_int8_accuracy": "tflite",
}  # metric -> precision in a run's metrics
SEARCH_FILE, DATASET_FILE, ORACLE_FILE = "search.json", "dataset.json", "oracle.json"
LOCK_FILE = ".lock"


class TrialPruned(Exception):  # noqa: N818 (no error: an outcome)
    """The float training was stopped as hopeless; its checkpoint stays."""


class StopHopelessTraining(keras.callbacks.Callback):
    """Raise `TrialPruned` after the first float epoch at which the highest accuracy so far is below the threshold.

    Args:
        folder: of the run; the epochs that it already has are judged, too.
        threshold: validation accuracy (0..1) by epoch; empty: never stop.
        on_epoch: called after each epoch, or None.
    """

    def __init__(self, folder: Path, threshold: Sequence[float], on_epoch: Callable | None = None):
        super().__init__()
        self.threshold = tuple(threshold)
        self.curve = _float_curve(folder)
        self._on_epoch = on_epoch

    def check(self) -> None:
        """Raise TrialPruned if the epochs so far are hopeless; after its last float epoch a training is always finished."""
        epoch = len(self.curve)
        if 0 < epoch < len(self.threshold) and max(self.curve) < self.threshold[epoch - 1]:
            raise TrialPruned

    def on_epoch_end(self, epoch, logs=None):
        """Judge an epoch; Keras calls it, with epochs from 0."""
        if self._on_epoch is not None:
            self._on_epoch()
        if not is_quantize_aware(self.model):
            self.curve.append(logs["val_accuracy"])
            self.check()


def _float_curve(folder: Path) -> list[float]:
    """Give the validation accuracy after each float epoch in a run's folder; none if there is no run yet."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return []
    return [row["val_accuracy"] for row in read_checkpoint(path).history if row["phase"] == "float"]


@dataclass(frozen=True)
class Training:
    """Everything that one training needs besides the data; it can be sent to another machine.

    Args:
        spec, recipe: the net and how it is trained.
        folder: of the run.
        objective: a name of OBJECTIVES.
        threshold: as for `StopHopelessTraining`.
        initial: weights to start from, as `get_weights` gives them; None: random ones.
        teacher: spec, weights and name of a float net that it learns from, or None.
        command: for its card; None: Python that trains it is written.
        search: content of the search's SEARCH_FILE, by which another machine tells whether it shares the search's folder.
    """

    spec: ModelSpec | Architecture
    recipe: Recipe
    folder: Path
    objective: str
    threshold: tuple[float, ...] = ()
    initial: list[np.ndarray] | None = None
    search: str = ""
    teacher: tuple[Architecture, list[np.ndarray], str] | None = None
    command: str | None = None


def train_net(dataset: Dataset, training: Training, on_epoch: Callable | None = None) -> dict[str, float]:
    """Train a net to its end, or until it is hopeless, and give its metrics; a repeated call continues the training.

    Of several processes that train the same net one trains, and the others wait for its result.

    Args:
        dataset: to train on; nets are compared on its validation split.
        training: what to train.
        on_epoch: as for `StopHopelessTraining`.

    Returns:
        Validation accuracies by precision and by float epoch, costs, seconds.

    Raises:
        keras_tuner.errors.FailedTrialError: the training diverged or memory ran out; a search goes on with other nets.
    """
    spec, folder = training.spec, training.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / LOCK_FILE):
        stop = StopHopelessTraining(folder, training.threshold, on_epoch)
        try:
            stop.check()
            options = {"recipe": training.recipe, "callbacks": [stop], "command": training.command}
            if training.initial is not None:
                options["initial"] = _built(spec, training.initial)
            if training.teacher is not None:
                teacher, weights, name = training.teacher
                options["teacher"] = Source(name, "keras", memory=_built(teacher, weights))
            run = train(spec, dataset, out=folder, verbose=False, **options)
        except TrialPruned:
            highest = max(stop.curve)
            return metrics_of(training.objective, highest, stop.curve, pruned=True)
        except DivergedError as error:
            raise keras_tuner.errors.FailedTrialError(str(error)) from error
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            message = f"{spec.name} does not fit into memory: {str(error)[:200]}"
            raise keras_tuner.errors.FailedTrialError(message) from error
        finally:
            keras.backend.clear_session()
        accuracies = {metric: run.metrics["accuracy"]["validation"][key] for metric, key in OBJECTIVES.items()}
        accuracy = accuracies[training.objective]
        if not math.isfinite(accuracy):
            raise keras_tuner.errors.FailedTrialError(f"{training.objective} of {spec.name} is {accuracy}")
        return {
            **metrics_of(training.objective, accuracy, _float_curve(folder), pruned=False),
            **accuracies,
            "macs": run.metrics["macs"],
            "size_bytes": run.metrics["size_bytes"],
            "latency_ms": milliseconds(spec, run.int8_model()),
            "seconds": run.metrics["training_seconds"],
        }


def _built(spec, weights):
    model = build(spec)
    model.set_weights(weights)
    return model


def _train_anywhere(dataset: Dataset, training: Training) -> tuple[dict[str, float], dict[str, bytes]]:
    """Train in the search's folder if this machine shares it, else in a temporary one, whose files are returned."""
    search_file = training.folder.parents[1] / SEARCH_FILE
    if search_file.is_file() and search_file.read_text() == training.search:
        return train_net(dataset, training), {}
    with tempfile.TemporaryDirectory() as folder:
        own = dataclasses.replace(training, folder=Path(folder) / "run")
        metrics = train_net(dataset, own)
        return metrics, {path.name: path.read_bytes() for path in own.folder.iterdir()}


class FactorizationTuner(keras_tuner.Tuner):
    """Train the nets that an oracle proposes, each in its trial's folder, where a killed training continues.

    The oracle is a `FactorizationOracle`, or one of KerasTuner's stock oracles over `search_space(spec)`, which know no budget.

    Args:
        oracle: that proposes nets.
        dataset: from `load_dataset(..., input_shape=spec.input_shape)`; nets are compared on its validation split.
        spec: with a stock oracle, the spec whose stages it searches.
        recipe: of each trial, with a QAT phase; None: the data set's own.
        inherit: start each net from the trained weights of the net that it was derived from.
        initial: a float net, as `loading.resolve` takes it, of the nets' width and macro-architecture, from which nets start
            that inherit from no other. Stages at other levels, and the head for another number of classes, are as for `inherit`.
        prune: stop trainings whose accuracy is below the oracle's threshold.
        progress: shows lines and bars; None: nothing is shown.
        directory, project_name: the folder of trials and state; the same arguments continue the search there.
        overwrite: delete that folder's content first.

    Raises:
        ValueError: data, recipe, objective and space do not fit, the folder holds another search (the difference is
            named), or one of its files is damaged.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        dataset: Dataset,
        *,
        spec: ModelSpec | None = None,
        recipe: Recipe | None = None,
        inherit: bool = False,
        initial: str | os.PathLike | Source | None = None,
        prune: bool = True,
        progress: Progress | None = None,
        directory: str | os.PathLike = ".",
        project_name: str = "search",
        overwrite: bool = False,
    ):
        self.space = _space_of(oracle, spec)
        is_own, folder = isinstance(self.space, Space), Path(directory) / project_name
        self.recipe = recipe or (recipe_for if is_own else tuning_recipe_for)(dataset.name, begun=folder)
        if not is_own and (inherit or initial is not None):
            given = "inherit is set" if inherit else "initial is given"
            raise ValueError(f"{given}; each net of a model starts from the model's own weights: leave it out")
        self._initial = None if initial is None else _start_of(resolve(initial), self.space)
        self.dataset = dataset
        self.inherit, self.prune, self._lost_its_place = inherit, prune, False
        self.progress = progress or Progress(verbose=False)
        self._own_oracle = oracle  # KerasTuner puts a client in its place where there is a chief
        self._is_ours = isinstance(oracle, FactorizationOracle)
        _check_search(oracle, self.space, dataset, self.recipe)
        super().__init__(oracle, directory=os.fspath(directory), project_name=project_name, overwrite=overwrite)
        if self._is_ours:
            oracle.costs.labels = dataset.class_names
        self._search_text = self._identity(oracle)
        if self._is_worker():
            return
        texts = {SEARCH_FILE: self._search_text, DATASET_FILE: dataset_fingerprint(dataset)}
        if self._is_ours and not any(folder.glob("trial_*")):  # nothing fitted: the folder may take another search
            _begin_anew(folder, texts)
        open_folder(folder, texts, "search")
        self._search_text = (folder / SEARCH_FILE).read_text()  # of an earlier version it may be written otherwise
        # Ours goes on from its trials' files alone.
        if (folder / ORACLE_FILE).exists() or (self._is_ours and any(folder.glob("trial_*/trial.json"))):
            oracle.reload()
            self._lost_its_place = isinstance(oracle, keras_tuner.oracles.GridSearchOracle) and bool(oracle.trials)
        else:
            oracle.save()

    def _identity(self, oracle):
        fields = {
            "oracle": type(oracle).__name__,
            **(oracle.identity() if self._is_ours else space_identity(self.space, None, oracle.objective.name)),
            "inherit": self.inherit,
            "prune": self.prune,
            **({"initial": fingerprint(self._initial[1])} if self._initial else {}),
            **{f"recipe_{name}": value for name, value in self.recipe.to_dict().items()},
        }
        return json.dumps(fields, indent=2) + "\n"

    def search(self, executor: Executor | None = None) -> None:
        """Run trials until the oracle has no more.

        Args:
            executor: trains the nets of a batch at the same time; None: here, one after the other. The oracle gets the results
                in the order of the proposals, so the search is the same. It must use processes, not threads, since
                TensorFlow's random state belongs to a process. If KERASTUNER_ORACLE_IP is set, KerasTuner's own chief and
                workers search instead, without an executor.

        Raises:
            ValueError: no net fits the requirement, the oracle proposes no batches for an executor, or it is a GridSearchOracle
                that was begun before, which KerasTuner cannot continue.
            RuntimeError: three trials failed in a row, or another process searches in the folder.
            OSError: the disk is full, or an executor lost a machine for good (ConnectionError).
            Exception: any other exception of user code or a stock oracle; the next search repeats that trial.
        """
        if executor is not None and not self._is_ours:
            raise ValueError(f"a {type(self._own_oracle).__name__} proposes no batches; leave the executor out")
        if self._lost_its_place:
            remedy = "search in a new folder, or with overwrite=True"
            raise ValueError(f"a GridSearchOracle cannot go on: KerasTuner keeps its place in no file; {remedy}")
        if "KERASTUNER_ORACLE_IP" in os.environ:
            super().search()
        else:
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(FileLock(Path(self.project_dir) / LOCK_FILE, 0))
                except TimeoutError:
                    where = f"in {self.project_dir}; wait for its end, or give another folder"
                    raise RuntimeError(f"another process searches {where}") from None
                if self._own_oracle.ongoing_trials:  # of a search by this object that an error ended
                    self._own_oracle.reload()
                self.on_search_begin()
                while trials := self._next_trials(math.inf if executor is not None else 1):
                    self._run_all(trials, executor)
                self.on_search_end()
        failure = getattr(self._own_oracle, "failure", None)
        if failure is not None:
            raise failure

    def _next_trials(self, count) -> list[Trial]:
        """Give so many trials, fewer where the oracle waits for their results; none at the end of the search."""
        trials = []
        while len(trials) < count:
            self.pre_create_trial()
            trial = self.oracle.create_trial(f"tuner{len(trials)}")
            if trial.status != TrialStatus.RUNNING:
                break
            trials.append(trial)
        return trials

    def _run_all(self, trials, executor) -> None:
        if executor is None:
            (trial,) = trials
            self.on_trial_begin(trial)
            self._finish(trial, self.run_trial)
            return
        futures = []
        for trial in trials:
            self.on_trial_begin(trial)
            training = self._training(trial)
            self._say_begin(trial, training)
            futures.append(executor.submit(_train_anywhere, self.dataset, training))
        try:
            for trial, future in zip(trials, futures):
                self._finish(trial, self._received, future)
        finally:
            for future in futures:
                future.cancel()

    def _received(self, trial, future) -> dict[str, float]:
        metrics, files = future.result()
        folder = self.run_folder(trial.trial_id)
        for name in sorted(files, key=lambda name: name == "metrics.json"):  # last: it says that a run is whole
            write_bytes(folder / name, files[name])
        return metrics

    def _finish(self, trial, run, *arguments) -> None:
        """End a trial by what `run` of it and the arguments gives or raises."""
        objective = self._own_oracle.objective.name
        try:
            metrics = run(trial, *arguments)
            self.oracle.update_trial(trial.trial_id, metrics)
            trial.status = TrialStatus.COMPLETED
            outcome = "given up, hopeless" if metrics.get(PRUNED) else f"{100 * metrics[objective]:.2f} %"
            self.progress.say(f"  {self.space.net_from(trial.hyperparameters.values).name}: {outcome}")
        except keras_tuner.errors.FailedTrialError as error:
            trial.status, trial.message = TrialStatus.FAILED, str(error)
        self.on_trial_end(trial)  # which tells the oracle

    def run_trial(self, trial: Trial) -> dict[str, float]:
        """Train a trial's net here and give its metrics, as `train_net`.

        Raises:
            keras_tuner.errors.FailedTrialError: the training diverged or memory ran out; the search goes on.
        """
        training = self._training(trial)
        done = self._say_begin(trial, training)
        self.progress.bar(training.spec.name, self.recipe.epochs + self.recipe.qat_epochs, done=done)
        return train_net(self.dataset, training, self.progress.step)

    def _training(self, trial) -> Training:
        values = trial.hyperparameters.values
        net, folder = self.space.net_from(values), self.run_folder(trial.trial_id).absolute()
        if not isinstance(self.space, Space):
            self.progress.say(f"fitting {net.name}")
        return Training(
            self.space.spec_of(net),
            self.recipe,
            folder,
            self._own_oracle.objective.name,
            tuple(map(float, values.get(THRESHOLD, "").split())) if self.prune else (),
            self.space.start(net, folder) or self._inherited(values.get(PARENT, ""), net, folder),
            self._search_text,
            self.space.teacher,
            self.space.command_of(net),
        )

    def _inherited(self, parent_id, spec, folder) -> list[np.ndarray] | None:
        """Give the weights to start from, or None: the same at each call for a trial."""
        parent_spec, parent = self._initial or (None, None)
        if self.inherit and parent_id:
            run = load_run(self.run_folder(parent_id))
            if (run.spec.width, run.spec.macro) == (spec.width, spec.macro):
                parent_spec, parent = run.spec, run.float_model()
        if parent is None:
            return None
        if not (folder / START_FILE).exists():
            is_older = folder.exists() and any(folder.iterdir())  # begun when nothing was fitted
            images = None if is_older else self.dataset.calibration(self.recipe.calibration_images)
            model = inherit(parent, parent_spec, spec, seed=self.recipe.seed, calibration=images)
            if is_older:
                return model.get_weights()
            begin(folder, model, spec, "")  # a fit done again may differ in its last bits
        weights = load_begun(folder, "").get_weights()
        keras.backend.clear_session()
        return weights

    def _say_begin(self, trial, training) -> int:
        """Say that a trial starts, and give the epochs that it already has."""
        done, reason = len(_float_curve(training.folder)), trial.hyperparameters.values.get(REASON, "proposed")
        again = f", going on after epoch {done}" if done else ""
        self.progress.say(f"trial {int(trial.trial_id)}: {training.spec.name}, {reason}{again}")
        return done

    def run_folder(self, trial_id: str) -> Path:
        """Give the folder of a trial's training: after its end a run that `load_run` takes."""
        return Path(self.project_dir) / f"trial_{trial_id}" / "run"

    def load_run(self, trial: Trial) -> Run:
        """Load the finished training of a trial. Raises FileNotFoundError where it was stopped early or failed."""
        return load_run(self.run_folder(trial.trial_id))

    def load_model(self, trial: Trial) -> keras.Model:
        """Load the quantization-aware tf_keras model of a finished trial; `load_run(trial).int8_model()` is the .tflite."""
        return self.load_run(trial).qat_model()

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """Load the best nets, best first, of the trials that were trained to their end, as `load_model` gives them."""
        trials = self.oracle.get_best_trials(len(self._own_oracle.trials))
        ended = [trial for trial in trials if (self.run_folder(trial.trial_id) / "metrics.json").is_file()]
        return [self.load_model(trial) for trial in ended[:num_models]]

    def save(self):
        """Write the oracle's state; the tuner has none of its own."""
        if not self._is_worker():
            self.oracle.save()


def _space_of(oracle: keras_tuner.Oracle, spec: ModelSpec | None) -> NetSpace:
    """Give the oracle's own space, or a stock oracle's widths with the stages of `spec`."""
    if isinstance(oracle, FactorizationOracle):
        own = getattr(oracle.space, "spec", None)
        if spec is not None and spec != own:
            raise ValueError(f"spec is {spec}, the oracle's is {own}; leave it out")
        return oracle.space
    if spec is None:
        raise ValueError(f"a {type(oracle).__name__} knows no net; give spec=")
    widths = next((tuple(hp.values) for hp in oracle.hyperparameters.space if hp.name == "width"), (spec.width,))
    return Space(spec, widths)


def _start_of(source: Source, space: Space) -> tuple[ModelSpec, keras.Model]:
    """Give spec and model that nets of a space start from, adapted to its images and classes (by a new head)."""
    own = source.spec
    families = {(family.base.width, family.base.macro) for family in space.families}
    if not isinstance(own, ModelSpec) or families != {(own.width, own.macro)}:
        raise ValueError(
            f"the nets cannot start from {source.given}: it must be one of the package's own nets, and all nets to choose from must "
            "have its width and macro-architecture; leave out other ones"
        )
    spec = dataclasses.replace(own, input_shape=space.input_shape, num_classes=space.num_classes)
    keras.utils.set_random_seed(0)
    model = build(spec)
    copy_weights(source.float_model(), model)
    return spec, model


def _check_search(oracle: keras_tuner.Oracle, space: NetSpace, dataset: Dataset, recipe: Recipe) -> None:
    if hasattr(oracle, "max_epochs"):
        raise ValueError(
            f"a {type(oracle).__name__} compares trainings of a few epochs; a trial here is a whole one: use another oracle"
        )
    if oracle.objective.name not in OBJECTIVES:
        raise ValueError(f"the objective is {oracle.objective.name!r}; it must be one of {', '.join(OBJECTIVES)}")
    check_has_qat(recipe)
    check_data(dataset, space.input_shape, space.num_classes)


def _begin_anew(folder: Path, texts: dict[str, str]) -> None:
    """Make the folder of a search without trials that of another one; costs stay if they were measured for the same data."""
    if not all((folder / name).is_file() for name in (*texts, ORACLE_FILE)):
        return  # it is no search's
    with contextlib.suppress(TimeoutError), FileLock(folder / LOCK_FILE, 0):  # else it is under way, and stays as it is
        if (folder / DATASET_FILE).read_text() != texts[DATASET_FILE]:
            (folder / COSTS_FILE).unlink(missing_ok=True)
        (folder / ORACLE_FILE).unlink()
        for name, text in texts.items():
            write_text(folder / name, text)
