"""What is dear to make, made once: data, a trained run, its models. And how tests run a command: in this process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.zoo import publishing

pytest.register_assert_rewrite("serving_contract")
SHAPE = (16, 16, 1)
STAGES = ((1, 2), (2, 2))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is read from or left in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACTORIZENET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits():
    return fnet.load_dataset("digits", input_shape=SHAPE)


@pytest.fixture(scope="session")
def spec():
    return fnet.ModelSpec(1, width=8, input_shape=SHAPE, stages=STAGES)


@pytest.fixture(scope="session")
def recipe():
    return fnet.recipe_for("digits", epochs=6, qat_epochs=2, calibration_images=128)


@pytest.fixture(scope="session")
def run(digits, spec, recipe, tmp_path_factory):
    return fnet.train(spec, digits, out=tmp_path_factory.mktemp("runs") / "run", recipe=recipe, verbose=False)


@pytest.fixture
def no_conversion(run, monkeypatch):
    """Trainings end with the run's own .tflite and numbers: converting and measuring is most of a short one's time."""
    content = (run.folder / "model.tflite").read_bytes()
    for name, result in (("to_tflite", content), ("measure", run.metrics)):
        monkeypatch.setattr(f"factorizenet_tf.training.train.{name}", lambda *a, result=result, **options: result)


@pytest.fixture(scope="session")
def models(run):
    """The run's float, QAT and int8 models."""
    return SimpleNamespace(float=run.float_model(), qat=run.qat_model(), int8=run.int8_model())


@pytest.fixture(scope="session")
def zoo(run, tmp_path_factory):
    """A zoo folder with the run published in it; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("zoos") / "zoo"
    with pytest.MonkeyPatch.context() as patch:  # against itself, in the place of a ResNet-8 that is converted first
        patch.setattr(publishing, "LATENCY_ROUNDS", 1)
        patch.setattr(publishing, "LATENCY_RUNS", 20)
        patch.setattr(publishing, "_reference", lambda *_: (run.folder / "model.tflite").read_bytes())
        fnet.zoo.publish(run, zoo_dir=folder, verbose=False)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the checkout without a network, so that no older build is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(Path(__file__).parent.parent, folder / "checkout", ignore=ignored)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", folder]
    result = subprocess.run([*build, folder / "checkout"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def noise():
    """Random uint8 images (n, *shape) of a fixed seed."""

    def make(count, shape=SHAPE):
        return np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def analysis(run, digits):
    """The run's float and QAT nets analysed on few images, sensitivity included."""
    split = fnet.Split(digits.validation.images[:60], digits.validation.labels[:60])
    return fnet.analyze(
        run, calibration=digits.calibration(64), evaluation=split, dataset=digits, weight_bits=4, sensitivity=True
    )


@pytest.fixture
def succeeds(capfd):
    """Runs a command that must succeed and gives what it printed on stdout."""

    def call(*arguments):
        capfd.readouterr()
        assert main([str(a) for a in arguments]) == 0
        return capfd.readouterr().out

    return call


@pytest.fixture
def prints_json(succeeds):
    """Runs a command with --json and gives what all of its stdout parses to."""
    return lambda *arguments: json.loads(succeeds(*arguments, "--json"))


@pytest.fixture
def fails(capfd):
    """Runs a command that must fail with a code and one plain line on stderr, and gives the line."""

    def call(*arguments, code=2):
        capfd.readouterr()
        assert main([str(a) for a in arguments]) == code
        out, err = capfd.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("error: ")
        return err

    return call


@pytest.fixture(scope="session")
def own_net():
    """Makes a net as users have their own, with other layers in the place of pooling."""
    import tf_keras as keras

    def make(*middle, shape=SHAPE, classes=10, activation=None):
        keras.utils.set_random_seed(0)
        start = [keras.layers.Conv2D(8, 3, strides=2), keras.layers.BatchNormalization(), keras.layers.ReLU()]
        middle = middle or [keras.layers.GlobalAveragePooling2D()]
        layers = [keras.Input(shape), *start, *middle, keras.layers.Dense(classes, activation=activation)]
        return keras.Sequential(layers, name="mine")

    return make
