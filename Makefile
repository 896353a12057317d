# Creates the environment and runs the everyday commands. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
SAMPLE := configs/sample/clq_sample.yaml
OUT := output/sample
.DEFAULT_GOAL := help
.PHONY: help .venv demo test lint wheel docs doctor config-docs requirements fuzz soak licenses sbom compat
# Minutes for each property of a reader of files, Pythons to test on, and the tests to run on them.
FUZZ_MINUTES ?= 5
PYTHONS ?= 3.10 3.11 3.12 3.13
COMPAT_TESTS ?= tests

help:  ## list these targets
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

.venv: .venv/installed  ## create the environment (PYTHON=python3.12 selects another Python, 3.10 to 3.13)

# The stamp is written last, so that an interrupted installation is continued and a complete one is not repeated. If the
# machine has no uv, or one that is too old to read pyproject.toml, uv is installed in the venv.
.venv/installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo '$(PYTHON) is not Python 3.10 to 3.13; name one that is, as in `make .venv PYTHON=python3.11`.'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ echo 'This Python cannot create a venv; on Debian, run apt-get install python3-venv.'; rm -rf .venv; exit 1; }
	@printf 'uv 0.8.10\n%s\n' "$$(uv --version 2>/dev/null)" | sort -VC || test -x $(BIN)/uv || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8.10'
	@PATH="$(BIN):$$PATH" uv pip install --python $(BIN)/python -r requirements.txt -r requirements-dev.txt -e .
	@touch $@

demo: .venv/installed  ## train a small CLQ on aerial photographs of trees, evaluate it and draw its detections
	@$(BIN)/python -m clq.data.sample --output datasets/sample
	@$(BIN)/python train_net.py --config-file $(SAMPLE) --resume OUTPUT_DIR $(OUT)
	@$(BIN)/python tools/plot_detections.py --config-file $(SAMPLE) --output $(OUT)/pictures \
		MODEL.WEIGHTS $(OUT)/model_final.pth > $(OUT)/pictures.log 2>&1 || { cat $(OUT)/pictures.log; exit 1; }
	@echo 'pictures    $(OUT)/pictures'
	@echo 'metrics     $(OUT)/metrics.json, $(OUT)/inference/sample_trees_val/coco_instances_results.json'
	@echo 'checkpoint  $(OUT)/model_final.pth'
	@echo 'python      import clq; result = clq.load("$(OUT)")("photo.jpg")'

# One process for each core, with one thread each: small tensors gain nothing by more. A file's tests share fixtures such
# as a trained detector, so they stay together.
test: .venv/installed  ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile tests

lint: .venv/installed  ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

wheel: .venv/installed  ## build the wheel, install it outside of this folder and use it there
	@PATH="$(CURDIR)/$(BIN):$$PATH" .ci/wheel

docs: .venv/docs  ## build the site of the documentation in site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo site/index.html

# Nothing else needs these packages, so nothing else installs them.
.venv/docs: .venv/installed requirements-docs.txt
	@PATH="$(BIN):$$PATH" uv pip install --quiet --python $(BIN)/python -r requirements-docs.txt
	@touch $@

config-docs: .venv/installed  ## write docs/CONFIG.md from the table of config keys, docs/OPTIONS.md from the commands
	@$(BIN)/python tools/config_reference.py
	@$(BIN)/python tools/command_reference.py

doctor: .venv/installed  ## report what is installed, whether it works, and how to fix what does not
	@$(BIN)/python -m clq.doctor

fuzz: .venv/installed  ## try the readers of files with damaged content (FUZZ_MINUTES=5 for each; FUZZ=tests/data: some)
	@FUZZ_MINUTES=$(FUZZ_MINUTES) $(BIN)/python -m pytest -m fuzz -p no:warnings --show-capture=no --tb=short \
		$(or $(FUZZ),tests)

soak: .venv/installed  ## train for 5,000 iterations and check that memory, files and threads stay as they are
	@$(BIN)/python tools/soak.py

licenses: .venv/installed  ## write docs/licenses.md from the installed packages
	@$(BIN)/python tools/licenses.py

sbom: .venv/installed  ## write output/sbom.json, the software bill of materials (CycloneDX)
	@mkdir -p output
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible -o output/sbom.json
	@echo output/sbom.json

compat: .venv/installed  ## run the tests on other Pythons (PYTHONS='3.10 3.13', COMPAT_TESTS=tests/data)
	@PATH="$(BIN):$$PATH" .ci/compat "$(PYTHONS)" $(COMPAT_TESTS)

requirements:  ## pin the packages of requirements*.in again, for every supported Python
	@for f in requirements requirements-dev requirements-docs; do UV_CUSTOM_COMPILE_COMMAND='make requirements' \
		uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes $$f.in -o $$f.txt \
		> /dev/null || exit 1; done
