"""How tests run the command: in this process, by what it prints and the code it exits with."""

import json

import pytest

from factorizenet_tf.cli import main


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


@pytest.fixture
def saved(tmp_path):
    """Saves a model under the test's folder and gives its path."""

    def save(model, name="mine.keras"):
        model.save(tmp_path / name)
        return tmp_path / name

    return save
