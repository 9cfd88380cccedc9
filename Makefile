# `make demo` trains and scores a small model on synthetic speech; `make ablations` compares lattice
# losses on it, two trainings at once; `make test` runs the tests and lists the skipped ones.
# All make a virtual environment beside this file first, and do nothing twice.

PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
DEMO := $(CURDIR)/demo
SEED := 1

.PHONY: demo ablations test lint clean

demo: .venv/demo $(DEMO)/iemocap $(DEMO)/zed
	cd recipes/ZED && $(BIN)/python train.py hparams/ent_demo.yaml \
		--data_folder $(DEMO)/iemocap --zed_folder $(DEMO)/zed --output_folder $(DEMO)/ent

ablations: .venv/demo
	$(BIN)/python recipes/ZED/ablations.py --output_folder $(DEMO)/ablations --devices cpu,cpu --noprogressbar

test: .venv/dev
	$(BIN)/python -m pytest -rs --numprocesses auto --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv $(DEMO)

$(DEMO)/iemocap: | .venv/demo
	$(BIN)/python -m ent_brain.synth iemocap $@ --utterances 4000 --seed $(SEED)

$(DEMO)/zed: | .venv/demo
	$(BIN)/python -m ent_brain.synth zed $@ --utterances 180 --seed $(SEED)

.venv/%: setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check \
		--editable '.[$*]'
	touch $@
