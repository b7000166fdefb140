# Set-up and everything a newcomer runs: `make demo` and `make test` need Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What TensorFlow's C++ side says at start-up is not this project's output.
export TF_CPP_MIN_LOG_LEVEL ?= 3

# Two processes that begin with half of the tests each; who is done takes from the other's end. Files stay mostly together, and
# with them what a file or a folder makes once.
TWO := -n 2 --dist worksteal

# Further options of `make docs`.
SPHINX ?=

.PHONY: help install demo levels gallery docs test test-slow test-without-onednn test-gallery lint benchmark clean

help:
	@echo "make demo       search digits' best net under 1 M MACs, publish it to a local zoo, load it back (runs/search)"
	@echo "make levels     train every level on digits, compare float, PTQ, QAT and int8 (runs/levels)"
	@echo "make gallery    serve the zoo as a web page, whose nets run in the browser (site/)"
	@echo "make docs       build the documentation, notebooks run (docs/_build/html/index.html)"
	@echo "make test       run the tests"
	@echo "make test-without-onednn  run the tests of grouped convolutions, quantization and training with oneDNN off"
	@echo "make test-slow  run the tests that train for minutes or use whole test splits"
	@echo "make test-gallery  run the gallery's tests in a headless Chromium"
	@echo "make lint       ruff check and format, import-linter"
	@echo "make benchmark  print speed and memory ratios"

install: $(BIN)/.installed

$(BIN)/.installed: setup.py constraints.txt
	@echo "installing TensorFlow and the rest into $(VENV)/: some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[report,micro,test]'
	touch $@

demo: install
	$(BIN)/factorizenet search --dataset digits --size 16 --channels 1 --max-macs 1M --epochs 10 --qat-epochs 2 \
		--max-trials 10 --out runs/search --publish runs/zoo
	$(BIN)/factorizenet verify --all --zoo runs/zoo

levels: install
	$(BIN)/factorizenet study --dataset digits --size 16 --channels 1 --out runs/levels

gallery: install
	$(BIN)/factorizenet gallery --out site --serve

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going --quiet $(SPHINX) -c docs -d docs/_build/doctrees . docs/_build/html

test: install
	$(BIN)/python -m pytest -m "not slow" $(TWO)

# As on macOS, ARM and wherever oneDNN is off: no native gradient for grouped convolutions.
test-without-onednn: install
	TF_ENABLE_ONEDNN_OPTS=0 $(BIN)/python -m pytest -m "not slow" $(TWO) \
		tests/models/test_native.py tests/models/test_quantize.py tests/training

test-slow: install
	$(BIN)/python -m pytest -m slow $(TWO)

test-gallery: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest tests/zoo/test_gallery_page.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

benchmark: install
	$(BIN)/python tuner/benchmark.py

clean:
	rm -rf $(VENV) build dist *.egg-info
