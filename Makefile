# Each target does its own set-up, from a fresh clone on.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# A process a core; the tests of a file stay together, as they share what takes long to make.
PYTEST = $(RUN) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.ready  ## the main job on an offline stand-in, one to two minutes on two cores
	$(RUN) -m local_eval run --source synthetic --n-train 4000 --forget random:200 --architecture tinyconv --epochs 4 \
		--n-models 32 --limit 3m

test: $(VENV)/.ready-dev  ## the tests
	$(PYTEST)

test-slow: $(VENV)/.ready-dev  ## the tests that take minutes
	$(PYTEST) -m slow

lint: $(VENV)/.ready-dev  ## linter, formatter and notebooks, checking only
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m notebooks.build --check

clean:  ## the environment and everything cached in this folder
	rm -rf $(VENV) runs

$(VENV)/.ready: requirements.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
	touch $@
