import functools
import json
import shutil
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.loading import named_source, resolve
from factorizenet_tf.models import load, weights
from factorizenet_tf.models.quantize import is_quantize_aware
from factorizenet_tf.pixels import Pixels

INT8, FLOAT = "fnet-1x2.2x2-l1-x0.5-int8", "fnet-1x2.2x2-l1-x0.5-float"  # of the session's zoo, in none else
REFUSED = {
    "int8!": "is int8, quantized already; a float model is needed",
    "float!": "is a float model; an int8 one is needed",
    "tflite!": "is a .tflite: quantized already, and no Keras model is in it; give its run's folder",
    "spec!": "has no spec inside; --from takes a -float name, a run's folder or its float.h5",
    "run!": "is a run's folder, whose net is quantized already; give its float.h5",
}
# What each use gets of each source: a float or qat (fake-quantized) Keras model, the true int8 net, or a refusal.
TABLE = """
source       python   train  evaluate  analyze    factorize  search  quantize  tflite  regrouped  micro   latencies  serve   saved_model  serving
int8-name@1  qat      int8!  int8      float+qat  int8!      int8!   int8!     int8    int8       int8    int8       int8    qat          qat
float-name   float    float  float     float      float      float   float     float!  float!     float!  float!     float!  float        float
run          qat      float  int8      float+qat  float      float   run!      int8    int8       int8    int8       int8    float        qat
net.tflite   tflite!  spec!  int8      int8       int8!      int8!   tflite!   int8    int8       int8    int8       int8    tflite!      tflite!
float.h5     float    float  float     float      float      float   float     float!  float!     float!  float!     float!  float        float
qat.h5       qat      int8!  qat       qat        int8!      int8!   int8!     int8    int8       int8    int8       int8    qat          qat
own.keras    float    spec!  float     float      float      float   float     float!  float!     float!  float!     float!  float        float
own3.keras   float    spec!  float     float      float      float   float     float!  float!     float!  float!     float!  float        float
"""
HEAD, *ROWS = [line.split() for line in TABLE.strip().splitlines()]
CELLS = [(row[0], use, cell) for row in ROWS for use, cell in zip(HEAD[1:], row[1:])]
TRAIN = "train --from {} --dataset digits --out new"
COMMANDS = {  # the arguments around the source, and the function that gets the net
    "train": (TRAIN, "training.train.train"),
    "evaluate": ("evaluate {}", "models.evaluate.split_logits"),
    "analyze": ("analyze {}", "analysis.analyze._analyze"),
    "quantize": ("quantize {} --dataset digits --out new", "training.quantize.quantize_own"),
    "factorize": ("factorize {} --dataset digits --level 1 --out new.keras", "models.factorize.levels_of_layers"),
    "search": ("search --model {} --dataset digits --max-macs 50% --out new", "tuner.model_space.ModelSpace"),
    "tflite": ("export {} --tflite new", "tflite.export.export_tflite"),
    "regrouped": ("export {} --tflite new --regroup fastest", "tflite.regroup.regroup_fastest"),
    "micro": ("export {} --micro new", "tflite.micro_export.export_micro"),
    "latencies": ("latencies {} --out new", "tflite.latency.int8_convolutions"),
    "serve": ("serve {} --port 0", "serving.classifier.Classifier"),
    "saved_model": ("export {} --saved-model new", "models.convert.write_saved_model"),
    "serving": ("export {} --serving new", "serving.saved_model.serving_module"),
}


@pytest.fixture(scope="module")
def sources(run, own_net, tmp_path_factory):
    """What a user may name, by its name in the table; the run's .tflite copied out of the run."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copyfile(run.folder / "model.tflite", folder / "net.tflite")
    own_net().save(folder / "own.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras 3's own, of no concern here
        import keras as keras3

        body = keras3.Sequential([keras3.Input((16, 16, 1)), keras3.layers.Conv2D(4, 3), keras3.layers.Flatten()])
        inner = [keras3.layers.Rescaling(1 / 255), body, keras3.layers.Dense(10)]
        net = keras3.Sequential([keras3.Input((16, 16, 1)), *inner])
        net.save(folder / "own3.keras")
    names = {"int8-name@1": f"{INT8}@1", "float-name": FLOAT}
    weights = {name: str(run.folder / name) for name in ("float.h5", "qat.h5")}
    files = {name: str(folder / name) for name in ("net.tflite", "own.keras", "own3.keras")}
    return names | weights | files | {"run": str(run.folder)}


@pytest.fixture
def quick(monkeypatch, models, digits):
    """Loading from a file takes a model that is there, once the file is found to be of that spec and precision."""

    def load_model(path, *, spec, precision):
        assert weights.read_header(path) == (spec, precision)
        return {"float": models.float, "int8": models.qat}[precision]

    monkeypatch.setattr("factorizenet_tf.training.factorized.load_model", load_model)  # imported before the next line
    monkeypatch.setattr(weights, "load_model", load_model)
    monkeypatch.setattr(load, "load_keras_model", KEPT)
    for function in ("loading.load_dataset", "cli.options.load_data"):
        monkeypatch.setattr(f"factorizenet_tf.{function}", lambda *arguments, **options: digits)


KEPT = functools.cache(load.load_keras_model)


def kind_of(value):
    """What a use got: a Source (then all it analyses or starts from), a Keras model, a .tflite or a server's net."""
    if hasattr(value, "models"):
        return "+".join(f"{kind_of(model)}" for model in value.models().values())
    if isinstance(value, keras.Model):
        assert value.input_shape == (None, 16, 16, 1)
        return "qat" if is_quantize_aware(value) else "float"
    int8 = value if isinstance(value, fnet.TFLiteModel) else fnet.Int8Model(value)
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
    if use == "analyze":  # which looks at a .tflite in another way
        monkeypatch.setattr("factorizenet_tf.analysis.tflite_layers.layer_rows", reach)
    has_data = source.partition("@")[0] in ("int8-name", "float-name", "run", "float.h5", "qat.h5")
    data = [] if has_data or use not in ("evaluate", "analyze") else ["--dataset", "digits"]
    code = main([*(part.format(sources[source]) for part in text.split()), *data, "--zoo", str(zoo)])
    message = capsys.readouterr().err
    if cell in REFUSED:
        assert code == 2
        assert f"error: {sources[source]} {REFUSED[cell]}" in message
    else:
        assert message == f"error: reached {cell}\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# What is known of a net


def test_a_source_knows_its_net_whatever_it_was_named_by(run, zoo, sources, digits):
    for source in ("int8-name@1", "float-name", "run", "float.h5", "qat.h5"):
        found, precision = resolve(sources[source], zoo_dir=zoo), "float" if "float" in source else "int8"
        assert (found.spec, found.labels, found.input_shape) == (run.spec, digits.class_names, (16, 16, 1))
        assert (found.name, found.precision) == (f"{run.spec.name}-{precision}", precision)
        assert (found.dataset_name, found.dataset_title) == ("digits", "digits")
    assert (found.zoo, found.reference) == (None, str(run.folder / "qat.h5"))
    named = resolve(INT8, zoo_dir=zoo)
    assert (named.zoo, named.reference, named.sibling.reference) == (str(zoo), f"{INT8}@1", f"{FLOAT}@1")
    assert resolve(named) is named
    own = resolve(sources["own.keras"])
    assert (own.name, own.spec, own.labels, own.dataset_name, own.input_shape) == ("own", None, None, None, (16, 16, 1))
    int8 = resolve(sources["net.tflite"])
    assert (int8.name, int8.labels, int8.precision) == ("net", digits.class_names, "int8")
    assert resolve(run).with_precision("float").name == f"{run.spec.name}-float"
    with pytest.raises(ValueError, match="precision is 'int4'; it must be int8 or float"):
        resolve(run).with_precision("int4")


def test_a_model_in_memory_is_a_source_and_another_object_is_not(models, zoo):
    assert resolve(models.float).model() is models.float
    assert (resolve(models.qat).precision, resolve(models.qat).name) == ("int8", models.qat.name)
    with pytest.raises(TypeError, match="got Int8Model; it needs a Keras model"):
        resolve(models.int8)


def test_a_resolution_reads_the_index_once(zoo, monkeypatch):
    from factorizenet_tf.zoo.store import FolderStore

    reads, cards = [], FolderStore.cards
    monkeypatch.setattr(FolderStore, "cards", lambda store: [reads.append(store), cards(store)][1])
    found = resolve(f"{INT8}@1", zoo_dir=zoo)
    assert found.int8_model().labels == found.labels
    assert len(reads) == 1


def test_near_names_are_offered_in_capitals_too_and_it_is_said_where_others_are_looked_up(zoo):
    message = r"did you mean 'fnet-l2-int8'.*zoo_dir=, or by FACTORIZENET_ZOO, which is not set"
    with pytest.raises(ValueError, match=message):
        resolve("FNET-L2-INT8")
    with pytest.raises(ValueError, match=rf"did you mean '{INT8}'.*\(in {zoo}\)"):
        resolve(INT8.upper(), zoo_dir=zoo)
    with pytest.raises(ValueError, match=f"there is no file or folder {INT8}@7, and {INT8} has no version '7'"):
        resolve(f"{INT8}@7", zoo_dir=zoo)


def test_a_name_before_the_source_is_split_off_and_an_equals_sign_in_a_path_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert named_source("lr=0.1") == (None, "lr=0.1")  # it exists
    assert named_source("runs/lr=0.1") == (None, "runs/lr=0.1")
    assert named_source("mine=runs/lr=0.1") == ("mine", "runs/lr=0.1")
    assert named_source("fnet-l2-int8@1") == (None, "fnet-l2-int8@1")


def test_an_unfinished_run_says_that_it_is_and_how_to_go_on(run, tmp_path, capsys):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("spec.json", "recipe.json", "dataset.json", "float.h5"):
        shutil.copy(run.folder / name, begun)
    said = f"no finished run in {begun}: it has no model.tflite; it was begun: give the command that began it again"
    assert main(["evaluate", str(begun)]) == 2
    assert said in capsys.readouterr().err
    assert resolve(begun).float_model().input_shape == (None, 16, 16, 1)
    with pytest.raises(FileNotFoundError, match=r"has no qat\.h5; it was begun"):
        resolve(begun).qat_model()
    (begun / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"has no qat\.h5: it was trained without QAT"):
        resolve(begun).qat_model()
    (begun / "spec.json").write_text("{")
    with pytest.raises(ValueError, match=r"spec\.json is damaged"):
        resolve(begun).name  # noqa: B018
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model in .*: a run's folder has spec\.json"):
        resolve(tmp_path / "empty")


# The user's own models

FORMATS = ["own.keras", "own.h5", "own"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_ones_own_is_loaded_with_its_weights(own_net, noise, tmp_path, name):
    model, images = own_net(keras.layers.Flatten(name="Lambda")), noise(3) / np.float32(255)  # named so, and none
    model.save(tmp_path / name)
    loaded = resolve(tmp_path / name).model()
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_a_lambda_layer_inside_a_nested_model_is_refused_and_its_code_not_run(tmp_path, name):
    mark = tmp_path / "code-was-run"
    code = keras.layers.Lambda(lambda x, path=str(mark): [open(path, "w").close(), x][1], name="code")
    inner = keras.Sequential([keras.Input((16, 16, 1)), code])
    assert mark.exists()
    keras.Sequential([keras.Input((16, 16, 1)), inner, keras.layers.Flatten()]).save(tmp_path / name)
    mark.unlink()
    with pytest.raises(ValueError, match="the layer 'code' is a Lambda, whose code is not run"):
        resolve(tmp_path / name).model()
    assert not mark.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_models_file_may_have_any_stock_field_and_how_it_was_compiled(noise, tmp_path, name):
    layers = keras.layers
    options = {"kernel_regularizer": "l2", "kernel_constraint": "max_norm", "kernel_initializer": "he_normal"}
    inner = keras.Sequential([layers.Conv2D(4, 3, activation="relu6", input_shape=(16, 16, 1), **options)])
    inner.compile(keras.optimizers.Adam(0.1), keras.losses.MeanSquaredError())
    ones = keras.initializers.Constant(np.ones((784, 10)))
    ends = [layers.ReLU(), layers.Flatten(), layers.Dense(10, kernel_initializer=ones)]
    model = keras.Sequential([layers.Rescaling(1.0, input_shape=(16, 16, 1)), inner, *ends])
    model.compile(keras.optimizers.SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
    model.set_weights([values + 0.1 for values in model.get_weights()])
    model.save(tmp_path / name)
    images = noise(3) / np.float32(255)
    np.testing.assert_allclose(resolve(tmp_path / name).model()(images), model(images), rtol=1e-4)


class Mine(keras.layers.ReLU):
    """A layer of one's own."""


def changed(path, change):
    """Change the architecture in a .keras or .h5 file, or a SavedModel's folder."""
    if path.is_dir():
        from tf_keras.protobuf.saved_metadata_pb2 import SavedMetadata

        file = path / "keras_metadata.pb"
        metadata = SavedMetadata.FromString(file.read_bytes())
        config = json.loads(metadata.nodes[0].metadata)
        change(config)
        metadata.nodes[0].metadata = json.dumps(config)
        file.write_bytes(metadata.SerializeToString())
    elif path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
    else:
        with zipfile.ZipFile(path) as file:
            entries = {name: file.read(name) for name in file.namelist()}
        config = json.loads(entries["config.json"])
        change(config)
        with zipfile.ZipFile(path, "w") as file:
            for entry, content in (entries | {"config.json": json.dumps(config)}).items():
                file.writestr(entry, content)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_that_a_file_names_is_called_but_stock_layers_and_activations(own_net, tmp_path, monkeypatch, name):
    mark, module = tmp_path / "code-was-run", tmp_path / "of_the_files.py"
    module.write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    net = own_net(keras.layers.Flatten())
    image = keras.Input((16, 16, 1))
    keras.Model(image, net(image)).save(tmp_path / name)
    call = {"name": "call", "trainable": True, "dtype": "float32", "function": "io.write_file"}
    nodes = [["_CONSTANT_VALUE", -1, str(mark), {"contents": "x"}]]
    system = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
    own = {"module": "of_the_files", "class_name": "Mine", "config": {"name": "own"}, "registered_name": "Mine"}

    def add(layer, **more):
        return lambda config: config["config"]["layers"].append(layer | {"name": "call", "inbound_nodes": [], **more})

    def set_first(key, value):
        return lambda config: config["config"]["layers"][1]["config"]["layers"][1]["config"].__setitem__(key, value)

    kind = {"module": "tf_keras.layers", "class_name": "TFOpLambda", "registered_name": "TFOpLambda", "config": call}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for change, message in (
        (add(kind, inbound_nodes=nodes), "the layer 'call' is a TFOpLambda, a call of TensorFlow's functions; replace"),
        (add(kind, inbound_nodes=[nodes]), "the layer 'call' is a TFOpLambda"),
        (add(system), "the layer 'call' is a function of os"),
        (add(own), "the layer 'own' is a Mine of of_the_files, which cannot be rebuilt; replace it by stock"),
        (
            add(own | {"module": None, "class_name": "ReLU", "registered_name": "Mine>ReLU"}),
            "the layer 'own' is a ReLU",
        ),
        (
            add(own | {"module": "keras_of_mine", "class_name": "ReLU", "registered_name": None}),
            "is a ReLU of keras_of",
        ),
        (
            set_first("activation", system),
            r"the layer 'conv2d\S* has activation 'system', which cannot be rebuilt; use",
        ),
        (set_first("activation", "deserialize"), r"the layer 'conv2d\S* has activation 'deserialize'"),
        (set_first("kernel_initializer", own), r"the layer 'conv2d\S* has kernel_initializer 'Mine'"),
        (lambda config: config.update(class_name="Mine"), "is a Mine, a custom class; it must be a functional"),
    ):
        changed(tmp_path / name, change)
        with pytest.raises(ValueError, match=message):
            resolve(tmp_path / name).model()
        assert not mark.exists()
        for path, content in before.items():
            path.write_bytes(content)
    assert resolve(tmp_path / name).model().count_params() == net.count_params()


def test_a_layer_of_ones_own_is_named_and_so_is_an_unknown_keras(own_net, sources, tmp_path):
    for name in FORMATS:
        own_net(Mine(name="own"), keras.layers.Flatten()).save(tmp_path / name)
        with pytest.raises(ValueError, match=r"the layer 'own' is a Mine.*; replace it by stock convolutions"):
            resolve(tmp_path / name).model()
    with zipfile.ZipFile(sources["own3.keras"]) as old, zipfile.ZipFile(tmp_path / "new.keras", "w") as new:
        for entry in old.namelist():
            content = b'{"keras_version": "4.0.0"}' if entry == "metadata.json" else old.read(entry)
            new.writestr(entry, content)
    with pytest.raises(ValueError, match=r"new\.keras was saved by Keras 4\.0\.0; save it with tf_keras"):
        resolve(tmp_path / "new.keras").model()


def test_a_file_that_is_an_archive_and_hdf5_at_once_is_read_as_one_of_them(own_net, tmp_path):
    own_net(keras.layers.Lambda(lambda x: x, name="code"), keras.layers.Flatten()).save(tmp_path / "both.h5")
    own_net().save(tmp_path / "good.keras")
    with open(tmp_path / "both.h5", "ab") as file:
        file.write((tmp_path / "good.keras").read_bytes())
    assert zipfile.is_zipfile(tmp_path / "both.h5")
    with pytest.raises(ValueError, match="the layer 'code' is a Lambda"):
        resolve(tmp_path / "both.h5").model()


def test_the_pixels_of_ones_own_model_are_kept_and_said_of_no_other(sources, own_net, succeeds, fails, tmp_path):
    net = resolve(sources["own.keras"], pixels=Pixels("-1..1", 0.5)).model()
    image = np.random.default_rng(0).random((2, 16, 16, 1)).astype(np.float32)
    expected = resolve(sources["own.keras"]).model()(2 * image - 1 - 0.5)
    np.testing.assert_allclose(net(image), expected, atol=1e-5)
    net.save(tmp_path / "taken.keras")
    again = resolve(tmp_path / "taken.keras", pixels=Pixels("-1..1", 0.5)).model()
    np.testing.assert_allclose(again(image), expected, atol=1e-5)
    for arguments, message in (
        (
            ["quantize", sources["net.tflite"], "--pixel-range", "0..255"],
            "for a Keras model of your own: leave them out",
        ),
        (["quantize", sources["own.keras"], "--pixel-range", "0..1000"], "--pixel-range is '0..1000'; it must be 0..1"),
        (["quantize", sources["own.keras"], "--pixel-mean", "red"], "'red' is no number; give one"),
        (["quantize", sources["own3.keras"], "--size", "20"], "--size is 20; the model 'sequential"),
    ):
        assert message in fails(*arguments, "--dataset", "digits", "--out", tmp_path / "out")
    options = ["--method", "ptq", "--pixel-range", "0..255", "--quiet"]
    succeeds("quantize", sources["own3.keras"], "--dataset", "digits", "--out", tmp_path / "out", *options)
    tflite = fnet.Int8Model(tmp_path / "out" / "model.tflite")
    assert tflite.input_quantization == (pytest.approx(1 / 255), -128)
    digits = fnet.load_dataset("digits", input_shape=(16, 16, 1)).test
    images = digits.images[:100]
    expected = fnet.from_keras3(sources["own3.keras"], pixel_range="0..255").predict(images / 255, verbose=0)
    assert np.mean(tflite.predict(images).argmax(1) == expected.argmax(1)) >= 0.95


@pytest.fixture(scope="module")
def odd(run, own_net, tmp_path_factory):
    """A folder of files that are no image classifier, or a damaged one."""
    folder = tmp_path_factory.mktemp("odd")

    def save(name, *layers, shape=(8, 8, 1)):
        keras.Sequential([keras.Input(shape), *layers]).save(folder / name)

    own_net().save_weights(folder / "weights.h5")
    with zipfile.ZipFile(folder / "photos.keras", "w") as file:
        file.writestr("a.txt", "a photo")
    inputs = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    keras.Model(inputs, keras.layers.Flatten()(keras.layers.Add()([*inputs]))).save(folder / "two.keras")
    save("map.keras", keras.layers.Conv2D(4, 3))
    save("channels.keras", keras.layers.Flatten(), shape=(8, 8, 2))
    save("sizes.keras", keras.layers.GlobalAveragePooling2D(), shape=(None, None, 1))
    (folder / "cut.h5").write_bytes((run.folder / "float.h5").read_bytes()[:9000])
    (folder / "cut.tflite").write_bytes((run.folder / "model.tflite").read_bytes()[:5_000])
    (folder / "notes.txt").write_text("a note")
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.h5", "is no model that tf_keras can load .*; save it with tf_keras"),
        ("photos.keras", "is no model that tf_keras can load"),
        ("notes.txt", "is no model that tf_keras can load"),
        ("cut.h5", "is damaged"),
        ("cut.tflite", "is damaged"),
        ("two.keras", "it must take images"),
        ("map.keras", "it must take images"),
        ("sizes.keras", "of a fixed size"),
        ("channels.keras", "with 1 or 3 channels"),
        *((name, "no model at ") for name in ("none.tflite", "none.h5", "runs/none")),
    ],
)
def test_files_that_are_no_image_classifier_are_refused_with_what_would_be(odd, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as found:
        resolve(odd / name).int8_model() if name.endswith("tflite") else resolve(odd / name).model()
    assert name in str(found.value)
