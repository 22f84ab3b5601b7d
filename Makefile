# `make serve` from a fresh clone: environment, checks, service. Needs make, and Python 3.11 or 3.12.
.DEFAULT_GOAL := help
.PHONY: help venv serve preflight doctor rehearse check lint types test test-agents test-gpu-frontend test-rehearsal \
	install-agents bench docs clean

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python

FAST_TESTS := tests/unit tests/loadtest tests/model tests/test_house.py
OTHER_TESTS := $(filter-out $(FAST_TESTS) tests/gpu_frontend tests/rehearsal,$(patsubst %/,%,$(sort $(wildcard tests/*/ tests/test_*.py))))
# pytest's status 5: nothing was selected.
PYTEST = $(PY) -m pytest -q

help:
	@echo 'make serve      check, start, and say how to use it; Ctrl-C takes everything down'
	@echo 'make test       everything, real vLLM and Ray included (make check: lint, types, quick tests)'
	@echo 'make test-agents  the real coding agents against the service (installs them under build/agents)'
	@echo 'make test-rehearsal  a whole rehearsal of the demo, and one that is interrupted: some 6 minutes on 2 cores'
	@echo 'make test-gpu-frontend  the ingress on the GPU build of vLLM, without a GPU (downloads 336 MB, kept in build/)'
	@echo 'make preflight  only the checks that a start begins with'
	@echo 'make rehearse   all of it on this machine with made-up weights: start, requests, load, a killed engine; a verdict'
	@echo 'make doctor     how the running service is'
	@echo 'make bench      ours against the bare vLLM server'
	@echo 'make docs       write the generated pages of docs/'
	@echo 'make clean      remove the environment and what was built'

venv:
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 or 3.12 on PATH; make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@$(PYTHON) requirements/install.py $(VENV)

serve: venv
	@$(PY) -m serve_app serve

preflight doctor rehearse docs: venv
	@$(PY) -m serve_app $@

lint: venv
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

types: venv
	@$(PY) -m mypy

check: lint types
	@$(PY) -m serve_app docs --check
	@$(PYTEST) $(wildcard $(FAST_TESTS)) -m 'not engine and not ray and not slow'

test: check install-agents
	@$(PYTEST) $(wildcard $(FAST_TESTS)) -m 'engine or ray or slow' || test $$? -eq 5
	@$(PYTEST) $(OTHER_TESTS)

install-agents: venv
	@$(PY) -m tests.agents.install

test-agents: install-agents
	@$(PYTEST) tests/agents

# Starts the whole service twice, on its own ports: nothing else may run.
test-rehearsal: venv
	@$(PYTEST) tests/rehearsal

# The GPU build's Python laid over the environment, and the tests of the APIs on it: some 13 minutes on 2 cores.
GPU_FRONTEND := build/gpu-frontend
test-gpu-frontend: venv
	@$(PY) -m tests.gpu_frontend.install $(GPU_FRONTEND)
	@PYTHONPATH=$(CURDIR)/$(GPU_FRONTEND):$(CURDIR) VLLM_TARGET_DEVICE=cpu $(PYTEST) tests/gpu_frontend \
		$$(test -f $(GPU_FRONTEND)/installed && echo tests/http)

bench: venv
	@$(PY) -m bench

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
