"""The command `factorizenet`: each command parses, calls the package, and prints a table or JSON."""

import logging
import os
import re
import sys
import warnings
from typing import Annotated

import typer

from .. import __version__
from .analyze import analyze, study
from .doctor import doctor
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
# In a message: an argument at its start, one with "=", or a name that no other text has; what is said of Python stays.
PYTHON = re.compile(
    r"(?<!in Python )(?:^(\w+)(?= is )|\b(\w+)=(?:True\b|(?=[,; ]|$))|(?<![\w./'\"-])([a-z]+_[a-z_]+)(?![\w./'\"(=]))"
)
# Where options have other names.
ALIASES = {
    "zoo_dir": "--zoo",
    "num_classes": "--classes",
    "stem_stride": "s in --macro",
    "last_channels": "p in --macro",
}
QUESTION = "Find the depth factorization that suits a budget under int8 quantization."
GUIDE = {  # what a user wants, and an example of each command for it
    "Try what is published": "list --best --dataset cifar10 --max-macs 6M; card fnet-l2-int8; predict photo.png --model fnet-l2-int8; "
    "gallery --serve; verify fnet-l2-int8",
    "See what levels cost and do": "study --dataset digits --size 16 --channels 1 --out runs/levels; levels --measure; "
    "describe --level 1.2.4 --size 64; analyze runs/l2 --out report.html",
    "Search for the best net": "search --dataset photos --size 32 --max-macs 6M --out runs/best; "
    "publish runs/l2 --zoo my-zoo",
    "Your own images": "train --dataset photos --size 32 --out runs/l2; evaluate runs/l2 --errors errors.html; "
    "prepare tiny_imagenet tiny-imagenet-200.zip --out tiny",
    "Your own net": "factorize mine.keras --dataset photos --max-macs 50% --run half; "
    "quantize mine.keras --dataset photos --out runs/int8",
    "Use a net": "export runs/l2 --tflite l2.tflite --micro sources; serve fnet-l2-int8 --port 8501; inspect l2.tflite; "
    "slim theirs.tflite small.tflite; latencies fnet-l2-int8 --out board.json",
    "What is missing or slow here": "doctor",
}
EXAMPLES = {want: {example.split()[0]: example for example in text.split("; ")} for want, text in GUIDE.items()}
app = typer.Typer(name="factorizenet", rich_markup_mode=None, pretty_exceptions_enable=False)
_FUNCTIONS = [levels, describe, prepare, train, quantize, factorize, evaluate, export, analyze, study, verify, publish]
_FUNCTIONS += [gallery, search, latencies, slim, inspect, serve, predict, doctor]
_COMMANDS = {function.__name__: function for function in _FUNCTIONS} | {"list": list_models, "card": show_card}
for _name, _example in (pair for examples in EXAMPLES.values() for pair in examples.items()):
    app.command(_name, epilog=f"\b\nExample:\n  factorizenet {_example}")(_COMMANDS[_name])


@app.callback(invoke_without_command=True, help=QUESTION)
def _start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Before a command: show TensorFlow's and LiteRT's own log, too.")
    ] = False,
):
    if verbose and (version or context.invoked_subcommand is None):
        raise typer.BadParameter("--verbose is for a command that follows; leave it out")
    if verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
        logging.getLogger("tensorflow").setLevel(logging.NOTSET)
    if version:
        print(f"factorizenet_tf {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(f"factorizenet_tf {__version__}\n{QUESTION}")
        for want, (first, *others) in EXAMPLES.items():
            print(f"{want} (also {', '.join(others)}):" if others else f"{want}:")
            print(f"  factorizenet {EXAMPLES[want][first]}")
        print("Options of a command, and an example: factorizenet COMMAND --help")
        print("TensorFlow's log, too: factorizenet --verbose COMMAND; Tab: --install-completion")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; a message is one plain line and the exit code says whose fault it was.

    Returns:
        0; 2 for the caller's error; 1 for a run that failed; 130 on Ctrl-C. FACTORIZENET_TRACEBACK=1 shows the stack.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its advice on tracing is for its own users
    # One plain line, as errors are.
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_in_options(str(message), arguments)}\n"
    try:
        code = app(arguments, standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if os.environ.get("FACTORIZENET_TRACEBACK"):
            raise
        if hasattr(error, "format_message"):  # a usage error, of click or of Typer's own copy of it
            is_late = getattr(error, "option_name", "") == "--verbose"
            remedy = "give it before the command: factorizenet --verbose COMMAND" if is_late else "see --help"
            return _fail(f"{error.format_message()} ({remedy})", 2)
        return _fail(_in_options(_message(error), arguments), 2 if isinstance(error, CALLERS) else 1)
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


def _in_options(message, arguments):
    """Replace Python's names by the command's options: "--max-bytes is 0", "give --stem" for "give stem=True"."""
    commands = typer.main.get_command(app).commands
    names = [name for name in arguments if name in commands][:1]  # none: the guide, or a shell's completion
    parameters = [parameter for name in names for parameter in commands[name].params]
    spelt = {p.name.rstrip("_"): [option for option in p.opts if option.startswith("--")] for p in parameters}
    options = {name: own[0] for name, own in spelt.items() if own}
    options |= {name: text for name, text in ALIASES.items() if text.split()[-1] in options.values()}
    return PYTHON.sub(lambda match: options.get(match[match.lastindex], match[0]), message)


def _fail(message, code):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
