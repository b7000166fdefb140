import functools
import importlib
import shutil

import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.loading import resolve
from factorizenet_tf.models import load, weights
from factorizenet_tf.models.quantize import is_quantize_aware

INT8, FLOAT = "fnet-l1-x0.5-int8", "fnet-l1-x0.5-float"  # of the session's zoo, in none else
REFUSED = {
    "int8!": "is int8, quantized already; a float model is needed",
    "float!": "is a float model; an int8 one is needed",
    "tflite!": "is a .tflite: quantized already, and no Keras model is in it; give its run's folder",
    "spec!": "has no spec inside; --from takes a -float name, a run's folder or its float.h5",
    "run!": "is a run's folder, whose net is quantized already; give its float.h5",
}
# What each use gets of each source: a float or qat (fake-quantized) Keras model, the true int8 net, or a refusal.
TABLE = """
source      python   train   evaluate  analyze    quantize  tflite  regrouped  micro   latencies  serve   saved_model  serving
int8-name   qat      int8!   int8      float+qat  int8!     int8    int8     int8    int8       int8    qat          qat
int8-name@1 qat      int8!   int8      float+qat  int8!     int8    int8     int8    int8       int8    qat          qat
float-name  float    float   float     float      float     float!  float!   float!  float!     float!  float        float
float-name@1 float   float   float     float      float     float!  float!   float!  float!     float!  float        float
run         qat      float   int8      float+qat  run!      int8    int8     int8    int8       int8    float        qat
net.tflite  tflite!  spec!   int8      tflite!    tflite!   int8    int8     int8    int8       int8    tflite!      tflite!
float.h5    float    float   float     float      float     float!  float!   float!  float!     float!  float        float
qat.h5      qat      int8!   qat       qat        int8!     int8    int8     int8    int8       int8    qat          qat
own.keras   float    spec!   float     float      float     float!  float!   float!  float!     float!  float        float
own.h5      float    spec!   float     float      float     float!  float!   float!  float!     float!  float        float
own         float    spec!   float     float      float     float!  float!   float!  float!     float!  float        float
"""
HEAD, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [(row[0], use, cell) for row in ROWS for use, cell in zip(HEAD[1:], row[1:])]
COMMANDS = {  # the arguments around the source, and the function that gets the net
    "train": ("train --from {} --dataset digits --out new", "training.train.train"),
    "evaluate": ("evaluate {}", "models.evaluate.accuracy"),
    "analyze": ("analyze {}", "analysis.analyze._analyze"),
    "quantize": ("quantize {} --dataset digits --out new", "training.quantize.quantize_own"),
    "tflite": ("export {} --tflite new", "tflite.export.export_tflite"),
    "regrouped": ("export {} --tflite new --regroup fastest", "tflite.export.regroup_fastest"),
    "micro": ("export {} --micro new", "tflite.micro_export.export_micro"),
    "latencies": ("latencies {} --out new", "tflite.latency.int8_convolutions"),
    "serve": ("serve {} --port 0", "serving.classifier.Classifier"),
    "saved_model": ("export {} --saved-model new", "models.convert.write_saved_model"),
    "serving": ("export {} --serving new", "serving.saved_model.serving_module"),
}


def net(pool=None):
    layers = keras.layers
    head = [pool or layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return keras.Sequential([keras.Input((16, 16, 1)), layers.Conv2D(8, 3, strides=2), *head], name="mine")


@pytest.fixture(scope="module")
def sources(run, tmp_path_factory):
    """What a user may name, by its name in the table; the run's .tflite copied out of the run."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copyfile(run.folder / "model.tflite", folder / "net.tflite")
    for name in ("own.keras", "own.h5", "own"):
        net().save(folder / name)
    names = {"int8-name": INT8, "int8-name@1": f"{INT8}@1", "float-name": FLOAT, "float-name@1": f"{FLOAT}@1"}
    weights = {name: str(run.folder / name) for name in ("float.h5", "qat.h5")}
    files = {name: str(folder / name) for name in ("net.tflite", "own.keras", "own.h5", "own")}
    return names | weights | files | {"run": str(run.folder)}


@pytest.fixture
def quick(monkeypatch, models, digits):
    """Loading from a file takes a model that is there, once the file is found to be of that spec and precision."""

    def load_model(path, *, spec, precision):
        assert weights.read_header(path) == (spec, precision)
        return {"float": models.float, "int8": models.qat}[precision]

    monkeypatch.setattr(weights, "load_model", load_model)
    monkeypatch.setattr(load, "load_keras_model", KEPT)
    for module, name in (("loading", "load_dataset"), ("analysis.analyze", "load_dataset"), ("cli.train", "load_data")):
        module = importlib.import_module(f"factorizenet_tf.{module}")
        monkeypatch.setattr(module, name, lambda *arguments, **options: digits)


KEPT = functools.cache(load.load_keras_model)


def kind_of(value):
    """What a use got: a Source (then all it analyses or starts from), a Keras model, a .tflite or a server's net."""
    if hasattr(value, "models"):
        return "+".join(f"{kind_of(model)}" for model in value.models().values())
    if isinstance(value, keras.Model):
        assert value.input_shape == (None, 16, 16, 1)
        return "qat" if is_quantize_aware(value) else "float"
    int8 = value if isinstance(value, fnet.Int8Model) else fnet.Int8Model(value)
    assert int8.input_shape == (16, 16, 1)
    return "int8"


class ReachedError(Exception):
    """The work has begun, with what was loaded."""


@pytest.mark.parametrize(("source", "use", "cell"), CELLS, ids=[f"{source}-{use}" for source, use, _ in CELLS])
def test_each_use_gets_the_net_that_is_named_or_says_what_it_needs(
    source, use, cell, sources, quick, zoo, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    if use == "python":
        if cell in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[cell]):
                resolve(sources[source], zoo_dir=zoo).model()
        else:
            assert kind_of(resolve(sources[source], zoo_dir=zoo).model()) == cell
        return

    def reach(*arguments, **options):
        got = options["initial"].float_model() if use == "train" else arguments[0]
        raise ReachedError(f"reached {kind_of(got.__self__ if hasattr(got, '__self__') else got)}")

    text, function = COMMANDS[use]
    if use == "serve":  # the one that gets it among other things
        reach_first, reach = reach, lambda *arguments, **options: reach_first(arguments[1])
    monkeypatch.setattr(f"factorizenet_tf.{function}", reach)
    has_data = source.partition("@")[0] in ("int8-name", "float-name", "run", "float.h5", "qat.h5")
    data = [] if has_data or use not in ("evaluate", "analyze") else ["--dataset", "digits"]
    code = main([*(part.format(sources[source]) for part in text.split()), *data, "--zoo", str(zoo)])
    message = capsys.readouterr().err
    if cell in REFUSED:
        assert code == 2
        assert f"error: {sources[source]} {REFUSED[cell]}" in message
    else:
        assert message == f"error: reached {cell}\n"
    assert not list(tmp_path.glob("new*"))
