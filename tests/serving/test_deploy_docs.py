"""The walk-through of docs/deploy.md, run as it stands."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.cli import app
from factorizenet_tf.serving.server_nets import read_image

NAME = "fnet-l2-int8"
TEXT = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
ZOO_COMMAND = """
import pathlib, sys
from factorizenet_tf import cli
from factorizenet_tf.zoo import store
zoo, *arguments = sys.argv[1:]
if zoo != "-":
    store._own_folder = lambda: pathlib.Path(zoo)
sys.exit(cli.main(arguments))
"""


def section(title):
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def block(title, language="sh", number=0):
    return re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)[number]


def command(line, zoo="-"):
    program, *arguments = shlex.split(line)
    assert program == "factorizenet"
    return [sys.executable, "-c", ZOO_COMMAND, str(zoo), *arguments]


def shell(script, folder):
    """Run lines of the page in bash; `factorizenet` and `python` are this environment's."""
    functions = f"factorizenet() {{ '{sys.executable}' -c '{ZOO_COMMAND}' - \"$@\"; }}\n"
    functions += f"python() {{ '{sys.executable}' \"$@\"; }}\n"
    result = subprocess.run(["bash", "-c", "set -e\n" + functions + script], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def walk(lines, name, model, folder, zoo="-"):
    """Run the three commands on a free port, with `name` for the page's; gives what the first and the third print."""
    first, second, third = (line.replace(NAME, name) for line in lines)
    listed = subprocess.run(command(first, zoo), capture_output=True, text=True, cwd=folder, check=True).stdout
    assert "--port 8501" in second
    start = command(second.replace("8501", "0"), zoo)
    server = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder)
    try:
        url = re.match(r"(http://\S+)/v1/models/", server.stdout.readline())[1]
        fnet.serving.Client(url, model).wait_until_ready(60)
        ask = third.replace("http://localhost:8501", url).replace(f"--model {name}", f"--model {model}")
        asked = subprocess.run(command(f"{ask} --json", zoo), capture_output=True, text=True, cwd=folder)
        assert asked.returncode == 0, asked.stderr
        return listed, asked.stdout, url
    finally:
        server.terminate()
        assert server.wait(60) == 0
        server.stdout.close()


@pytest.fixture
def picture(tmp_path, digits):
    Image.fromarray(digits.test.images[0].squeeze()).resize((64, 64)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_the_three_commands_as_they_stand_serve_a_published_net(tmp_path):
    y, x = np.mgrid[0:200, 0:300]
    Image.fromarray(np.stack([x % 256, y, (x + y) // 2], 2).astype(np.uint8)).save(tmp_path / "picture.png")
    lines = block("From zoo to server in three commands").strip().splitlines()
    listed, asked, _ = walk(lines, NAME, NAME, tmp_path)
    assert fnet.zoo.best(max_macs=20_000_000).name in listed
    image = read_image((tmp_path / "picture.png").read_bytes(), (32, 32, 3))
    (row,) = json.loads(asked)
    expected = fnet.zoo.load(NAME, "tflite").predict(image[None])[0]
    assert row["class"] == fnet.zoo.card(NAME).class_names[expected.argmax()]
    assert row["probability"] == pytest.approx(1 / np.exp(expected - expected.max()).sum(), abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_three_commands_serve_a_training_of_ones_own(run, picture, digits):
    lines = block("From zoo to server in three commands").strip().splitlines()
    model = f"{run.spec.name}-int8"
    _, asked, _ = walk(lines, str(run.folder), model, picture.parent)
    assert f'"class": "{digits.test.labels[0]}"' in asked


@pytest.mark.slow
def test_the_three_commands_go_from_a_zoo_to_a_server(run, picture, digits, tmp_path):
    fnet.zoo.publish(run, zoo_dir=tmp_path / "zoo", verbose=False)
    lines = block("From zoo to server in three commands").strip().splitlines()
    name = f"{run.spec.name}-int8"
    listed, asked, _ = walk(lines, name, name, tmp_path, tmp_path / "zoo")
    assert name in listed
    assert f'"class": "{digits.test.labels[0]}"' in asked
    for precision in ("int8", "float"):
        arguments = f"factorizenet export {run.spec.name}-{precision} --serving models --json"
        made = subprocess.run(command(arguments, tmp_path / "zoo"), cwd=tmp_path, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        assert (tmp_path / "models" / f"{run.spec.name}-{precision}" / "1" / "saved_model.pb").is_file()
        labels = tmp_path / "models" / f"{run.spec.name}-{precision}" / "1" / "assets" / "labels.txt"
        assert tuple(labels.read_text().split()) == digits.class_names
    micro = subprocess.run(command(f"factorizenet export {name} --micro micro", tmp_path / "zoo"), cwd=tmp_path)
    assert micro.returncode == 0
    (header,) = (tmp_path / "micro").glob("*_model.h")
    assert f"/* {name}, an int8" in header.read_text()


@pytest.mark.skipif(os.name != "posix", reason="a shell's command")
def test_curl_and_the_python_lines_get_answers(picture, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "tuner")
    from benchmark import running_server

    title = "From zoo to server in three commands"
    with running_server(NAME) as url:
        script = "set -e\n" + block(title, number=1).replace("http://localhost:8501", url)
        result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        for part in ('"state":"AVAILABLE"', "serving_bytes", '"predictions":'):
            assert part in result.stdout
        code = block(title, "python").replace("http://localhost:8501", url)
        printed = io.StringIO()
        monkeypatch.setattr(sys, "stdout", printed)
        exec(compile(code, "deploy.md", "exec"), {})
        assert len(printed.getvalue().split()) == 2


@pytest.mark.skipif(os.name != "posix", reason="a shell's commands")
def test_the_board_and_the_microcontroller_lines_run_as_they_stand(picture, tmp_path):
    titles = ("A phone or a board with LiteRT", "Regrouping for the target", "A microcontroller")
    (tmp_path / "classify.py").write_text(block(titles[0], "python"))
    board = block(titles[0]) + block(titles[0], number=1)
    assert "python classify.py net.tflite image.npy" in board
    printed = shell(board + block(titles[1]) + block(titles[2]), tmp_path)
    label = re.search(r"^(\w+) -?\d+\.\d+$", printed, re.MULTILINE)[1]
    image = read_image(picture.read_bytes(), (32, 32, 3))
    logits = fnet.zoo.load(NAME, "tflite").predict(image[None])[0]
    names = fnet.zoo.card(NAME).class_names
    assert label in [names[number] for number in logits.argsort()[-3:]]  # numpy's image is resized by another filter
    assert (tmp_path / "table.json").is_file()
    plain, fast = (fnet.Int8Model(file) for file in (fnet.zoo.load("fnet-l4-int8", "path"), tmp_path / "fast.tflite"))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(fast.predict_quantized(images), plain.predict_quantized(images))
    assert f"/* {NAME}, an int8" in (tmp_path / "sources" / "fnet_l2_int8_model.h").read_text()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a shell's commands")
def test_the_lines_for_tensorflow_serving_run_as_they_stand_but_for_docker(tmp_path):
    lines = block("TensorFlow Serving").strip().splitlines(keepends=True)
    assert [line.split()[0] for line in lines] == ["factorizenet", "docker", *["factorizenet"] * 3]
    shell("".join(line for line in lines if not line.startswith("docker")), tmp_path)
    assert [path.name for path in sorted((tmp_path / "models" / NAME).iterdir())] == ["1", "2"]
    config = (tmp_path / "models" / "models.config").read_text()
    assert re.search(r'key: "stable"\s+value: 1\b', config)  # rolled back
    compose = lines[1].split()[lines[1].split().index("-f") + 1]
    assert (tmp_path / compose).is_file()


def test_every_command_and_option_of_the_page_exists():
    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^factorizenet ([\w-]+) (.*)$", TEXT, re.MULTILINE)
    assert {name for name, _ in lines} == {"list", "serve", "predict", "export", "label", "latencies"}
    for name, rest in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known, name
