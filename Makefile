# Two commands do everything on a fresh machine with Python 3.11, git and make:
#   make run    trains SID beside local cross-entropy and backprop on real images, and writes a report
#   make test   lints, checks types and runs the tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
# The one place that knows where data sets may lie beside a checkout.
export SIDESTEP_DATA ?= $(wildcard ../shared/data)

.PHONY: run test test-slow test-faults format gpu-evidence clean

$(VENV)/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

$(VENV)/test: $(VENV)/base
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

run: $(VENV)/base
	$(BIN)/sidestep compare sid local_ce backprop --data digits --out runs/digits --overwrite
	@echo "report: runs/digits/report.html"

# One thread a worker: two workers on two cores, and the same numbers everywhere.
test: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m slow --timeout=3600

test-faults: $(VENV)/test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m faults --timeout=3600

format: $(VENV)/test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What a borrowed GPU is for: the studies of a part, the most important first, for so many minutes in all.  The same line
# goes on where the rows end.  It runs in the machine's own Python, since nothing can be installed there; where there is
# no git either, SIDESTEP_COMMIT says what the rows are of.  Pages are made of the rows afterwards, where there is time.
core    := gpu-core reproduction attribution gap label-noise cifar100 backbones
engines := engines
bll     := bll-images bll bll-choices bll-blocks bll-autoencoder bll-sequences
PART    ?= core
MINUTES ?= 9
RESULTS ?= results
RUNS    ?= runs/studies
# smoke: every piece on digits and a CPU, to see that it runs.
SIZE    ?= gpu

gpu-evidence:
	$(PYTHON) -m sidestep study $($(PART)) --$(SIZE) --minutes $(MINUTES) --results $(RESULTS) --runs $(RUNS) --no-page

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
