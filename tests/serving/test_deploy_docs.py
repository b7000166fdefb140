"""The walk-throughs of docs/serve.md, litert.md and microcontroller.md, run as they stand."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from google.protobuf import text_format
from PIL import Image
from tensorflow_serving.config import model_server_config_pb2

import factorizenet_tf as fnet
from factorizenet_tf.cli import app, main
from factorizenet_tf.data import read_image

NAME = "fnet-l2-int8"
PAGES = ("serve", "litert", "microcontroller")
TEXT = "\n".join((Path(__file__).parents[2] / "docs" / f"{page}.md").read_text() for page in PAGES)
START = "From zoo to server in three commands"
HERE = "http://localhost:8501"


def blocks(title, language="sh"):
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    fenced = [block.partition("\n") for block in section.split("```")[1::2]]
    return [text for kind, _, text in fenced if kind == language]


def run_lines(script):
    """Run a page's lines: `factorizenet` in this process, the others in bash, where `python` is this one."""
    for line in script.replace("\\\n", "").strip().splitlines():
        if line.startswith("factorizenet "):
            assert main(shlex.split(line)[1:]) == 0, line
        else:
            line = f"python() {{ '{sys.executable}' \"$@\"; }}\n{line}"
            result = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            print(result.stdout)


@pytest.fixture
def picture(tmp_path, monkeypatch):
    y, x = np.mgrid[0:200, 0:300]
    Image.fromarray(np.stack([x % 256, y, (x + y) // 2], 2).astype(np.uint8)).save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "picture.png"


@pytest.fixture
def logits(picture):
    """The published net's, of the picture."""
    return fnet.zoo.load(NAME, "tflite").predict(read_image(picture, (32, 32, 3))[None])[0]


def test_the_three_commands_find_ask_and_serve_a_published_net(picture, logits, server, capsys):
    best, predict, serve = blocks(START)[0].strip().splitlines()
    assert main(shlex.split(best)[1:]) == 0
    assert fnet.zoo.best(max_macs=20_000_000).name in capsys.readouterr().out
    assert main([*shlex.split(predict)[1:], "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["class"] == fnet.zoo.card(NAME).class_names[logits.argmax()]
    assert first["probability"] == pytest.approx(1 / np.exp(logits - logits.max()).sum(), abs=1e-3)
    assert serve == f"factorizenet serve {NAME} --port 8501"
    assert {NAME, "serve"} <= set(server.process.args)  # what the next test asks, on a free port
    assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]


def test_curl_and_the_python_lines_get_answers(picture, logits, server, capfd):
    run_lines(blocks(START)[1].replace(HERE, server.url))
    printed = capfd.readouterr().out
    assert '"state":"AVAILABLE"' in printed
    assert '"method_name":"tensorflow/serving/predict"' in printed
    assert f'"class_id":{logits.argmax()},' in printed
    exec(compile(blocks(START, "python")[0].replace(HERE, server.url), "deploy.md", "exec"), {})
    assert len(re.findall(r"'\w+'", capfd.readouterr().out)) == 2


def test_the_lines_for_a_board_and_a_microcontroller_run_as_they_stand(picture, logits, capfd):
    title = "Export and ask"
    Path("classify.py").write_text(blocks(title, "python")[0])
    run_lines("".join(blocks(title)))
    run_lines(f"factorizenet export {NAME} --tflite int8.tflite\npython classify.py int8.tflite image.npy")
    label, other = re.findall(r"^(\w+) -?\d+\.\d+$", capfd.readouterr().out, re.MULTILINE)
    assert label == other
    names = fnet.zoo.card(NAME).class_names
    assert label in [names[number] for number in logits.argsort()[-3:]]  # the line there resizes by another filter
    run_lines(blocks("Sources for TensorFlow Lite Micro")[0])
    assert list(Path("sources").glob("*model.h"))


def test_the_lines_for_another_grouping_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (title,) = (line.removeprefix("## ") for line in TEXT.splitlines() if line.endswith("for the target"))
    run_lines(blocks(title)[0])
    plain, fast = (fnet.Int8Model(file) for file in (fnet.zoo.load("fnet-l4-int8", "path"), "fast.tflite"))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(fast.predict_quantized(images), plain.predict_quantized(images))


@pytest.mark.slow
def test_the_lines_for_tensorflow_serving_run_as_they_stand_but_for_docker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = blocks("TensorFlow Serving")[0].replace("\\\n", "").splitlines(keepends=True)
    assert [line.split()[0] for line in lines] == ["factorizenet", "docker", "factorizenet"]
    run_lines(lines[0] + lines[2])
    assert sorted(path.name for path in Path("models", NAME).iterdir()) == ["1", "2"]
    volume, config = (re.search(rf"--{flag}[= ](\S+)", lines[1])[1] for flag in ("volume", "model_config_file"))
    assert volume.split(":")[1] == "/models"
    assert Path(config.lstrip("/")).is_file()


def test_the_labels_of_the_page_are_fields_of_the_servers_proto():
    entry = text_format.Parse(blocks("TensorFlow Serving", "")[0], model_server_config_pb2.ModelConfig())
    assert list(entry.model_version_policy.specific.versions) == [1, 2]
    assert dict(entry.version_labels) == {"stable": 1, "canary": 2}


def test_every_command_and_option_of_the_page_exists():
    commands = typer.main.get_command(app).commands
    lines = re.findall(r"^factorizenet ([\w-]+) (.*)$", TEXT, re.MULTILINE)
    assert {name for name, _ in lines} == {"list", "serve", "predict", "export", "latencies", "inspect", "slim"}
    for name, rest in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", rest)) <= known, name
