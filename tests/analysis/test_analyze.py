import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf import loading
from factorizenet_tf.analysis import analyze as layerwise
from factorizenet_tf.analysis.graph import fuse
from factorizenet_tf.analysis.measure import operation_table, output_row, sqnr_db
from factorizenet_tf.analysis.tables import TABLES, node_data
from factorizenet_tf.models.convert import with_full_range_pixels

layers = keras.layers


IMAGES = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)


def tiny(name="tiny"):
    """Three layers, random weights; two calls give two models of one shape."""
    body = [layers.Conv2D(4, 3, name="first"), layers.ReLU(6.0), layers.GlobalAveragePooling2D(name="mean")]
    return keras.Sequential([keras.Input((8, 8, 1)), *body, layers.Dense(3, name="last")], name=name)


def test_tables_have_both_nets_and_every_layer(analysis, spec):
    kernels = [layer.name for layer in spec.plan()]
    for source in ("float", "qat"):
        weights = analysis.weights[analysis.weights["source"] == source]
        for tensor in ("raw", "folded"):
            assert weights[weights["tensor"] == tensor]["layer"].tolist() == kernels
        outputs = analysis.activations[analysis.activations["source"] == source]["layer"]
        assert {"image", "pool", "stage2_block2_pointwise"} <= set(outputs)
    assert set(analysis.errors["scheme"]) == {"per_channel", "per_tensor", "qat"}
    assert set(analysis.errors[analysis.errors["source"] == "qat"]["scheme"]) == {"qat"}
    net = {"net": spec.name, "macs": fnet.count_macs(spec), "calibration_images": 64, "evaluation_images": 60}
    assert analysis.nets[[*net]].to_dict("records") == [net]


def test_rows_agree_with_numpy_on_weights_and_outputs(analysis, models, digits):
    layer = "stage2_block1_spatial"
    kernel = models.float.get_layer(layer).get_weights()[0]
    ranges = np.ptp(kernel, axis=(0, 1, 2))
    weights, channels, histograms = (
        table.query(f"source == 'float' and tensor == 'raw' and layer == '{layer}'")
        for table in (analysis.weights, analysis.channels, analysis.histograms)
    )
    assert weights["range"].tolist() == pytest.approx([np.ptp(kernel)])
    assert weights["average_channel_precision"].tolist() == pytest.approx([np.mean(ranges / np.ptp(kernel))])
    np.testing.assert_allclose(channels["range"], ranges, rtol=1e-6)
    assert histograms["count"].sum() == kernel.size
    images = with_full_range_pixels(digits.calibration(64))
    inner = keras.Model(models.float.input, models.float.get_layer("stage2_block2_pointwise_relu6").output)
    values = inner.predict(images / np.float32(255), verbose=0)
    row = analysis.activations.query("source == 'float' and layer == 'stage2_block2_pointwise'").iloc[0]
    found = row[["numbers", "minimum", "maximum"]].tolist()
    assert found == pytest.approx([values.size, values.min(), values.max()], abs=1e-4)


def test_fewer_bits_and_one_scale_a_tensor_lose_more(analysis):
    errors = analysis.errors[analysis.errors["source"] == "float"].set_index(["scheme", "weight_bits", "layer"])
    kernels = errors.loc[("per_channel", 8)].dropna(subset="weight_mse").index
    for layer in kernels:
        eight, four = (errors.loc[("per_channel", bits, layer), "weight_sqnr_db"] for bits in (8, 4))
        assert 20 < eight - four < 30  # four bits are 24 dB
        assert errors.loc[("per_tensor", 8, layer), "weight_mse"] >= errors.loc[("per_channel", 8, layer), "weight_mse"]
    first = errors.loc[("per_channel", 8, "stem")]
    assert first["accumulation_db"] == pytest.approx(0, abs=1e-6)  # nothing is before it but the exact image
    last = errors.loc[("per_channel", 8, "logits")]
    assert last["accumulated_mse"] > last["mse"]


def test_outputs_stand_beside_the_float_nets(analysis):
    output = analysis.output.set_index("precision")
    assert list(output.index) == ["float", "per_channel W4A8", "per_channel W8A8", "per_tensor W8A8", "qat W8A8"]
    assert output.loc["float", ["qmse", "kl", "decrease_points"]].tolist() == [0, 0, 0]
    assert output.loc["per_channel W4A8", "kl"] > output.loc["per_channel W8A8", "kl"] > 0
    assert output.loc["float", "accuracy"] > 0.8


def test_sensitivity_has_every_part(analysis, spec):
    table = analysis.sensitivity[analysis.sensitivity["source"] == "float"]
    kernels = [layer.name for layer in spec.plan()]
    for part in ("only", "all_but"):
        assert table[table["part"] == part]["layer"].tolist() == kernels
    whole = table.set_index("part")["kl"]
    requested = analysis.output.set_index("precision").loc["per_channel W4A8"]
    assert whole["all"] == pytest.approx(requested["kl"])
    assert whole["activations"] < whole["weights"]  # W4A8
    assert (whole["only"] < whole["all"]).all()


def test_output_metrics_by_hand():
    reference, found = np.array([[0.0, 0.0]]), np.array([[0.0, np.log(3)]])
    split = fnet.Split(np.zeros((1, 1, 1, 1), np.uint8), np.array([0], np.int32))
    row = output_row(reference, found, split, is_softmax=False)
    # float (1/2, 1/2), quantized (1/4, 3/4)
    assert row["qmse"] == pytest.approx(np.log(3) ** 2 / 2)
    assert row["qce"] == pytest.approx(-0.5 * np.log(1 / 4) - 0.5 * np.log(3 / 4))
    assert row["kl"] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert (row["top1_agreement"], row["accuracy"], row["decrease_points"]) == (0, 0, 100)
    five = np.eye(2)[[0, 0, 0, 0, 1]], np.eye(2)[[0, 0, 0, 1, 1]]  # accuracies 4/5 and 3/5
    row = output_row(*five, fnet.Split(np.zeros((5, 1, 1, 1), np.uint8), np.zeros(5, np.int32)), is_softmax=True)
    assert (row["decrease_points"], row["decrease_percent"]) == (pytest.approx(20), pytest.approx(25))
    assert row["kl"] == pytest.approx(-np.log(1e-9) / 5, rel=1e-6)
    assert sqnr_db(100, 1) == pytest.approx(20)
    assert sqnr_db(1, 0) == np.inf
    assert np.isnan(sqnr_db(0, 0))


def test_it_is_saved_and_loaded_whole(analysis, tmp_path, spec):
    analysis.save(tmp_path / "saved")
    again = fnet.load_analysis(tmp_path / "saved")
    for name in TABLES:
        pandas.testing.assert_frame_equal(getattr(again, name), getattr(analysis, name), check_dtype=False)
    assert json.loads((tmp_path / "saved" / "analysis.json").read_text())["nets"][0]["net"] == spec.name
    errors = pandas.read_csv(tmp_path / "saved" / "errors.csv")
    assert len(errors) == len(analysis.errors)
    assert not (tmp_path / "saved" / "histograms.csv").exists()
    with pytest.raises(FileExistsError, match="is there already"):
        analysis.save(tmp_path / "saved")
    (tmp_path / "saved" / "errors.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="is damaged"):
        fnet.load_analysis(tmp_path / "saved")
    with pytest.raises(FileNotFoundError, match="no analysis in"):
        fnet.load_analysis(tmp_path)


def test_the_overlay_has_a_value_for_each_operation(analysis, models, spec):
    overlay = node_data(analysis, spec.name)
    plain = models.int8._plain()
    names = {tensor["index"]: tensor["name"] for tensor in plain.get_tensor_details()}
    operators = plain._get_ops_details()  # without a name in a slim file, and the number is Model Explorer's name of it
    assert list(overlay["results"]) == [names[op["outputs"][0]] or str(op["index"]) for op in operators]
    logits = analysis.errors.query("source == 'qat' and layer == 'logits'")["accumulated_sqnr_db"].iloc[0]
    assert overlay["results"][list(overlay["results"])[-1]]["value"] == pytest.approx(logits, abs=1e-3)
    with pytest.raises(ValueError, match="no net 'other'"):
        node_data(analysis, "other")
    without_file = dataclasses.replace(analysis, errors=analysis.errors.assign(tensor=None))
    assert [*node_data(without_file, spec.name)["results"]][-2:] == ["pool", "logits"]


def test_levels_line_up_by_block_and_depth():
    tables = []
    for level in (0, 3):
        graph = fuse(fnet.build(fnet.ModelSpec(level, width=8, input_shape=(8, 8, 1), stages=((2, 2),))))
        tables.append(operation_table(graph, graph.kernels).set_index("layer")["depth"])
    coarse, fine = tables
    for layer in ("stem", "stage1_block1_spatial", "stage1_block2_spatial", "logits"):
        assert coarse[layer] == fine[layer] == int(fine[layer])
    assert 0 < fine["stage1_block1_pointwise"] - fine["stage1_block1_spatial"] < 1


def test_nan_constants_and_dead_channels_are_noted_and_crash_nothing():
    model = tiny()
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 0], bias[0] = 0, -1  # a channel that ReLU6 keeps at zero
    model.get_layer("first").set_weights([kernel, bias])
    notes = fnet.analyze(model, calibration=IMAGES[:4]).notes
    texts = notes.set_index(["layer", "tensor"])["note"]
    assert "1 of 4 channels have no weights but zero" in texts["first", "weights"]
    assert "of 4 channels are constant" in texts["first", "activations"]
    kernel[..., 1] = np.nan
    model.get_layer("first").set_weights([kernel, bias])
    broken = fnet.analyze(model, calibration=IMAGES[:4])
    texts = {(row.layer, row.note) for row in broken.notes.itertuples()}
    assert ("first", "9 of 36 folded weights are NaN or infinite") in texts
    assert ("last", "12 of 12 outputs are NaN or infinite") in texts
    assert broken.errors.query("layer == 'last'")["mse"].isna().all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": None}, ValueError, "calibration: uint8 training images"),
        ({"calibration": IMAGES[:0]}, ValueError, "calibration is empty"),
        ({"calibration": IMAGES / 255}, TypeError, r"images in 0\.\.1 times 255"),
        ({"calibration": IMAGES[:, 1:]}, ValueError, "the model takes"),
        ({"evaluation": (IMAGES, np.zeros(3, int))}, ValueError, "give one label an image"),
        ({"activation_bits": 1}, ValueError, "activation_bits is 1; it must be an int from 2 to 8"),
        ({"weight_bits": 8.0}, ValueError, r"weight_bits is 8\.0"),
        ({"weight_bits": True}, ValueError, "weight_bits is True"),
        ({"evaluation_images": 0}, ValueError, "evaluation_images is 0; it must be an int of at least 1"),
        ({"bits": 4}, TypeError, "unexpected keyword argument 'bits'"),
        ({"scheme": "int8"}, ValueError, "scheme is 'int8'; it must be one of per_channel"),
        ({"subjects": []}, ValueError, "nothing to compare"),
    ],
)
def test_bad_arguments_are_refused_with_the_remedy(options, error, message):
    with pytest.raises(error, match=message):
        fnet.compare_levels(**{"subjects": [tiny()], "calibration": IMAGES} | options)


def test_percentiles_cut_the_outputs_ranges():
    options = {"scheme": "per_tensor_percentile", "activation_bits": 6}
    errors = fnet.analyze(tiny(), calibration=IMAGES, **options).errors.set_index(["scheme", "layer"])
    cut, whole = errors.loc["per_tensor_percentile"], errors.loc["per_tensor"]
    assert (cut["activation_bits"] == 6).all()
    assert cut.loc["first", "output_high"] < whole.loc["first", "output_high"]
    assert cut.loc["first", "sqnr_db"] < whole.loc["first", "sqnr_db"]


def test_a_published_name_brings_its_float_sibling_and_its_data(zoo):
    name = next(n for n in fnet.zoo.names(zoo_dir=zoo) if n.endswith("-int8"))
    found = fnet.analyze(name, zoo_dir=zoo, calibration_images=64)
    assert found.names == (name,)
    assert found.nets["source"].tolist() == ["float+qat"]
    assert found.nets["dataset"].tolist() == ["digits"]
    published = fnet.zoo.card(name, zoo_dir=zoo).accuracies["validation"]
    measured = found.output.set_index("scheme")["accuracy"]
    assert measured["float"] == pytest.approx(published["float"])
    assert measured["qat"] == pytest.approx(published["qat"], abs=0.01)
    assert measured["per_tensor"] == pytest.approx(published["ptq_per_tensor"], abs=0.02)
    pinned = loading.resolve(f"{name}@1", zoo_dir=zoo)
    assert layerwise._distinct_names([pinned]) == {pinned: f"{name}@1"}


def test_other_data_of_the_same_name_is_noted(zoo, digits, monkeypatch):
    net = loading.resolve(next(n for n in fnet.zoo.names(zoo_dir=zoo) if n.endswith("-int8")), zoo_dir=zoo)
    lossy = dataclasses.replace(digits, title="digits (JPEG)")
    monkeypatch.setattr(loading, "load_dataset", lambda name, **options: lossy)
    message = r"the data is digits \(JPEG\), the net was trained on digits; its accuracies here do not compare"
    with pytest.warns(RuntimeWarning, match=message):
        assert layerwise._data([net], None, None, True) == {net: lossy}
    assert layerwise._data([net], lossy, None, True) == {net: lossy}  # chosen by the caller: no warning


def test_two_runs_of_one_spec_are_told_apart_by_their_folders(run, digits, analysis, tmp_path, monkeypatch):
    monkeypatch.setattr(layerwise, "_analyze", lambda net, name, *_: analysis.renamed({analysis.names[0]: name}))
    folders = [str(tmp_path / "again"), str(tmp_path / "other" / "again")]
    for folder in folders:
        shutil.copytree(run.folder, folder)
    assert fnet.compare_levels([run, folders[0]], dataset=digits).names == (run.folder.name, "again")
    assert fnet.compare_levels(folders, dataset=digits).names == tuple(folders)
    for twice in ([folders[0], folders[0]], [analysis, analysis]):
        with pytest.raises(ValueError, match="is given twice; give each net once"):
            fnet.compare_levels(twice, dataset=digits)


def test_analyses_of_one_name_are_numbered_and_not_mixed(tmp_path):
    options = {"calibration": IMAGES[:4]}
    found = fnet.compare_levels([fnet.analyze(tiny(), **options), tiny("other"), tiny()], **options)
    assert found.names == ("tiny", "other", "tiny (2)")
    assert set(found.errors["net"]) == set(found.weights["net"]) == set(found.names)
    found.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "overlay-tiny_2_.json").is_file()


def test_the_pages_lines_on_an_analysis_give_the_int8_layers_that_lose_most(analysis):
    text = (Path(__file__).parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "fnet.analyze(" in block]
    lines = [line for line in block.splitlines() if "analysis.errors" in line or line.startswith("errors")]
    names = {"analysis": analysis}
    exec("\n".join(lines[:-1]), names)
    worst = eval(lines[-1], names)
    assert len(worst) == 5
    assert set(worst["weight_bits"]) == set(worst["activation_bits"]) == {8}
    int8 = analysis.errors.query("scheme == 'per_channel' and weight_bits == 8")
    assert worst["sqnr_db"].iloc[0] == int8["sqnr_db"].min()
