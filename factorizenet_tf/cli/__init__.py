"""The command `factorizenet`: each command parses, calls the package, and prints a table or JSON."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

import typer

from .analyze import analyze, study
from .export import export, latencies, predict, serve
from .factorize import factorize
from .models import describe, gallery, levels, list_models, publish, show_card, verify
from .search import search
from .tflite import inspect, slim
from .train import evaluate, prepare, quantize, train

__all__ = ["app", "main"]

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the C++ side's start-up notices are not this command's output

CALLERS = (ValueError, TypeError, FileNotFoundError, FileExistsError, PermissionError)  # the caller's errors
CALLERS += (NotADirectoryError, IsADirectoryError)
app = typer.Typer(
    name="factorizenet",
    help="Which granularity of depth factorization, under int8 quantization, for a budget.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_COMMANDS = [levels, describe, prepare, train, quantize, factorize, evaluate, export, analyze, study, verify, publish]
_COMMANDS += [gallery, search, latencies, slim, inspect, serve, predict]
for _command in _COMMANDS:
    app.command()(_command)
app.command("list")(list_models)
app.command("card")(show_card)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a message is one plain line and the exit code says whose fault it was.

    Returns:
        0; 2 for the caller's error; 1 for a run that failed; 130 on Ctrl-C. FACTORIZENET_TRACEBACK=1 shows the stack.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its advice on tracing is for its own users
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"  # one plain line, as errors are
    try:
        code = app(arguments or ["--help"], standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if os.environ.get("FACTORIZENET_TRACEBACK"):
            raise
        if hasattr(error, "format_message"):  # a usage error, of click or of Typer's own copy of it
            return _fail(f"{error.format_message()} (see --help)", 2)
        return _fail(_in_options(_message(error), arguments[0]), 2 if isinstance(error, CALLERS) else 1)
    if code == 130:  # Typer turns Ctrl-C into this code
        return _fail("interrupted; the same command continues a training after its last whole epoch", 130)
    return code


def _message(error):
    if isinstance(error, OSError) and error.strerror:  # the system's own, which says no remedy
        where = "" if error.filename is None else f"{error.filename}: "
        if isinstance(error, FileNotFoundError):
            return f"{where}{error.strerror}"
        return f"{where}{error.strerror}; give a path that can be written, on a disk with room"
    return str(error) or type(error).__name__


def _in_options(message, command):
    """Say what Python calls max_bytes as the command does: "--max-bytes is 0", "give --dataset" for "give dataset="."""
    parameters = typer.main.get_command(app).commands[command].params
    options = {parameter.name.rstrip("_"): max(parameter.opts, key=len) for parameter in parameters}
    options = {"zoo_dir": "--zoo"} | {name: option for name, option in options.items() if option.startswith("--")}

    def option(match):
        return options.get(match[1] or match[2], match[0])

    return re.sub(r"^(\w+)(?= is )|\b(\w+)=(?=[,; ]|$)", option, message)


def _fail(message, code):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
