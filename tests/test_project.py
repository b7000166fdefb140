import importlib.metadata
import re
from pathlib import Path

import pytest
import typer

import factorizenet_tf as fnet
from factorizenet_tf.cli import app

ROOT = Path(__file__).parent.parent


def test_every_export_resolves_and_a_typo_does_not():
    assert all(getattr(fnet, name) is not None for name in fnet.__all__)
    assert set(fnet.__all__) <= set(dir(fnet))
    with pytest.raises(AttributeError, match="attribute trian"):
        _ = fnet.trian
    assert fnet.__version__ == importlib.metadata.version("factorizenet_tf")


def test_only_the_package_is_a_package():
    for folder in ("zoo", "tuner", "tests", "notebooks"):
        assert (ROOT / folder).is_dir()
        assert not list((ROOT / folder).rglob("__init__.py"))
    assert not list((ROOT / "zoo").rglob("*.py"))
    assert "[project]" not in (ROOT / "pyproject.toml").read_text()


def test_each_command_is_in_the_readme_or_the_docs_and_each_option_and_make_target_there_exists():
    commands = typer.main.get_command(app).commands
    pages = "\n".join(path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    lines = re.findall(r"^(?:\w+=\S+ )*factorizenet (\w+) ([^#\n]*)", pages, re.MULTILINE)
    assert {name for name, _ in lines} == set(commands)
    used = {(name, option) for name, rest in lines for option in re.findall(r"--[\w-]+", rest)}
    assert ("train", "--out") in used
    assert used <= {(name, option) for name, command in commands.items() for p in command.params for option in p.opts}
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", pages, re.MULTILINE)) <= targets
