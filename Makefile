# Every command that this project is built, checked and shown with. `make` lists them.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
# Where this is set, imports cost two to four times as much: without cached bytecode every process compiles torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-cluster prove-simulation prove-rgw prove-restart prove-scale check docs lock images push clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

define install
	$(PYTHON) -c 'import sys; sys.exit("hiernas needs Python 3.11 or newer; name one with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --require-hashes --requirement images/requirements-uv.txt
	.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes --requirement $(1)
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
endef

.venv/.run: images/requirements-local.txt images/requirements-uv.txt pyproject.toml
	@echo "setting up .venv (torch is large: about 5 GB on Linux) …"
	$(call install,images/requirements-local.txt)
	@touch $@

.venv/.test: tests/requirements.txt tests/requirements-servers.txt images/requirements-uv.txt pyproject.toml
	@echo "setting up .venv with what the tests need …"
	$(call install,tests/requirements.txt)
	.venv/bin/uv venv --quiet --clear --python .venv/bin/python .venv/servers
	.venv/bin/uv pip install --quiet --python .venv/servers/bin/python --require-hashes --requirement tests/requirements-servers.txt
	@touch $@

demo: .venv/.run ## A real search on real images: run `demo` in the store runs/, report in runs/demo-report/
	@.venv/bin/hiernas data prepare digits
	@.venv/bin/hiernas run configs/demo.yaml
	@.venv/bin/hiernas report demo --out runs/demo-report

test: .venv/.test ## The tests, some minutes
	@.venv/bin/python -m pytest

# Only a KUBECONFIG that is given to make counts: one that happens to be exported may be of a cluster that nobody wants tested.
ifeq ($(origin KUBECONFIG),command line)
test-cluster: .venv/.test
	@HIERNAS_TEST_KUBECONFIG='$(abspath $(KUBECONFIG))' .venv/bin/python -m pytest tests/cluster --durations=15
else
test-cluster: .venv/.test ## The tests on a real Kubernetes, made on this machine (Debian, root; new: 15 minutes more), or on yours: KUBECONFIG=FILE
	@.venv/bin/python tests/cluster/cluster.py install
	@.venv/bin/python tests/cluster/cluster.py build
	@.venv/bin/python tests/cluster/images.py
	@.venv/bin/python -m pytest tests/cluster --durations=15
endif

prove-simulation: .venv/.test ## A million steps of simulated searches, some ten minutes; result in bench/results/
	@.venv/bin/python tests/simulation.py --steps 1000000 --out bench/results/simulation.txt

prove-restart: .venv/.test ## How long a restart with 7,000 outcomes in S3 takes, a quarter of an hour; result in bench/results/
	@.venv/bin/python bench/restart.py

prove-rgw: .venv/.test ## The S3 store on Ceph (RGW) through kills, some 12 minutes, as root on Debian; result in bench/results/
	@.venv/bin/python bench/prove_rgw.py

prove-scale: .venv/.test ## 3,000 candidates on 800 fake GPUs (KWOK) beside a bare client, some eight minutes; result in bench/results/
	@.venv/bin/python bench/scale.py

check: .venv/.test ## Lint, format, types, layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

docs: .venv/.test ## Write the made pages of docs/ again: records.md, config.md and metrics.md
	@.venv/bin/python docs/make_records.py
	@.venv/bin/python docs/make_config.py
	@.venv/bin/python docs/make_metrics.py

lock: .venv/.test ## Pin the requirements again, with hashes, to what is current
	@for target in "images/requirements-local.txt pyproject.toml --extra worker --extra report --extra data --extra s3 --extra cluster" \
	  "images/requirements-controller.txt pyproject.toml --extra s3 --extra cluster" \
	  "images/requirements-worker.txt pyproject.toml --extra s3 --extra worker" "images/requirements-store.txt images/store.in" \
	  "tests/requirements.txt pyproject.toml --all-extras" "tests/requirements-servers.txt tests/servers.in"; do \
	  set -- $$target; out=$$1; shift; \
	  .venv/bin/uv pip compile --quiet --universal --upgrade --generate-hashes --no-annotate --no-emit-index-url \
	    --custom-compile-command 'make lock' $$@ --output-file $$out; done
	@echo uv | .venv/bin/uv pip compile --quiet --universal --upgrade --generate-hashes --no-annotate --no-emit-index-url \
	  --custom-compile-command 'make lock' --output-file images/requirements-uv.txt -

images: ## Build the container images, with docker, podman or buildah; docs/images.md says what can be set
	@images/build.sh

push: images ## Build and push them: make push REGISTRY=registry.example.org/team
	@images/build.sh push

clean: ## Remove the virtual environment and caches; runs/ and data/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
