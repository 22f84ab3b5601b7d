# `make serve` from a fresh clone: environment, checks, service. Needs make, and Python 3.11 or 3.12.
.DEFAULT_GOAL := help
.PHONY: help venv serve preflight doctor rehearse check lint types test test-agents test-gpu-frontend test-deploy
.PHONY: measured-tests test-rehearsal test-monitoring install-agents coverage forget-coverage bench docs lock sbom clean

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python

FAST_TESTS := tests/unit tests/loadtest tests/model tests/test_house.py
HTTP_TESTS := tests/http
NO_TESTS := tests/coverage tests/fuzz
APART := $(NO_TESTS) tests/gpu_frontend tests/deploy tests/monitoring tests/rehearsal
OTHER_TESTS := $(filter-out $(FAST_TESTS) $(HTTP_TESTS) $(APART),\
	$(patsubst %/,%,$(sort $(wildcard tests/*/ tests/test_*.py)))) tests/monitoring/test_rules.py
RUN = $(PY)
# Notes which lines run, in every process that starts from here, too: each must find the plugin in tests/coverage. Not
# for real engines and Ray: it takes half as much CPU again, and its thread in a process is work to the watchdog.
MEASURED_RUN = PYTHONPATH=$(CURDIR) $(PY) -m coverage run
PYTEST = $(RUN) -m pytest -q
# On all cores. Not for real engines and Ray: one of them takes more than one.
SIDE_BY_SIDE := -n logical --maxprocesses 8 --dist worksteal

help:
	@echo 'make serve      check, start, and say how to use it; Ctrl-C takes everything down'
	@echo 'make test       everything, real vLLM and Ray included (make check: lint, types, quick tests)'
	@echo 'make coverage   the lines that the last make test did not run, by file'
	@echo 'make test-agents  the real coding agents against the service (installs them under build/agents)'
	@echo 'make test-rehearsal  a whole rehearsal of the demo, and one that is interrupted: some 6 minutes on 2 cores'
	@echo 'make test-gpu-frontend  the ingress on the GPU build of vLLM, without a GPU (downloads 336 MB, kept in build/)'
	@echo 'make test-deploy  the files of deploy/ in their own tools: hadolint, schemas, parsers (downloads 150 MB, kept in build/)'
	@echo 'make test-monitoring  dashboards, rules and alerts against a live service; needs prometheus and promtool (Debian: prometheus)'
	@echo 'make preflight  only the checks that a start begins with'
	@echo 'make rehearse   all of it on this machine with made-up weights: start, requests, load, a killed engine; a verdict'
	@echo 'make doctor     how the running service is'
	@echo 'make bench      ours against the bare vLLM server'
	@echo 'make docs       write the generated pages of docs/, and the dashboards'
	@echo 'make lock       renew requirements/locks after a change of requirements/*.in'
	@echo 'make sbom       write build/sbom-*.json (CycloneDX) from the locks'
	@echo 'make clean      remove the environment and what was built'

venv:
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 or 3.12 on PATH; make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@$(PYTHON) requirements/install.py $(VENV)

serve: venv
	@$(PY) -m serve_app serve

preflight doctor rehearse: venv
	@$(PY) -m serve_app $@

docs: venv
	@$(PY) -m serve_app docs
	@$(PY) -m monitoring

lint: venv
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

types: venv
	@$(PY) -m mypy

check: lint types
	@$(RUN) -m serve_app docs --check
	@$(PYTEST) $(SIDE_BY_SIDE) $(wildcard $(FAST_TESTS)) -m 'not engine and not ray and not slow'

measured-tests: RUN = $(MEASURED_RUN)
measured-tests: forget-coverage check
	@$(PYTEST) $(SIDE_BY_SIDE) $(wildcard $(FAST_TESTS)) -m 'slow and not engine and not ray'
	@$(PYTEST) $(SIDE_BY_SIDE) $(HTTP_TESTS)
	@$(PY) -m tests.coverage.report

test: measured-tests install-agents
	@$(PYTEST) $(wildcard $(FAST_TESTS)) -m 'engine or ray'
	@$(PYTEST) $(OTHER_TESTS)

coverage: venv
	@$(PY) -m tests.coverage.report --lines

forget-coverage:
	@rm -rf build/coverage

install-agents: venv
	@$(PY) -m tests.agents.install

test-agents: install-agents
	@$(PYTEST) tests/agents

# Starts the whole service twice, on its own ports: nothing else may run.
test-rehearsal: venv
	@$(PYTEST) tests/rehearsal

# Part of `make test`, too. Without prometheus and promtool on PATH its tests are skipped.
test-monitoring: venv
	@$(PYTEST) tests/monitoring

# The GPU build's Python laid over the environment, and on it the tests of the APIs and of what we take from vLLM: its
# names, parsers, flags and the arithmetic of its cache. Some 15 minutes on 2 cores.
GPU_FRONTEND := build/gpu-frontend
OVER_GPU_BUILD := tests/http $(addprefix tests/unit/test_,config.py data_parallel.py engine_versions.py hardware.py \
	kv_cache.py layouts.py tool_arguments.py vllm_api_check.py vllm_device.py vllm_patches_parsers.py \
	vllm_patches_patching.py vllm_patches_resume.py vllm_patches_shared_prefixes.py)
test-gpu-frontend: venv
	@$(PY) -m tests.gpu_frontend.install $(GPU_FRONTEND)
	@PYTHONPATH=$(CURDIR)/$(GPU_FRONTEND):$(CURDIR) VLLM_TARGET_DEVICE=cpu $(PYTEST) tests/gpu_frontend \
		$$(test -f $(GPU_FRONTEND)/installed && echo $(OVER_GPU_BUILD))

bench: venv
	@$(PY) -m bench

# Schemas and parsers of the tools that read deploy/. KUBERAY_CRDS: a folder or file of KubeRay's own definitions.
DEPLOY_TOOLS := build/deploy-tools
test-deploy: venv $(DEPLOY_TOOLS)/stamp
	@KUBERAY_CRDS='$(KUBERAY_CRDS)' $(PYTEST) tests/deploy tests/unit/test_deploy_files.py

TOOLS := build/tools
SBOMS := cpu-py311 cpu-py312 gpu-py311 gpu-py312

# Tools that belong in no environment of the service.
$(TOOLS)/stamp $(DEPLOY_TOOLS)/stamp: build/%/stamp:
	@test -n '$(PYTHON)' && $(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install -q --no-deps --require-hashes -r $<
	@touch $@
$(TOOLS)/stamp: requirements/locks/tools-py311.txt
$(DEPLOY_TOOLS)/stamp: requirements/locks/deploy-py311.txt

lock: $(TOOLS)/stamp
	@$(PYTHON) requirements/lock.py

sbom: $(TOOLS)/stamp
	@for lock in $(SBOMS); do \
		$(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
			-o build/sbom-$$lock.json requirements/locks/$$lock.txt && echo build/sbom-$$lock.json || exit 1; done

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
