# Two commands do everything on a fresh machine: make demo, make test. They need Python 3.10 to 3.12 and Java 17.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Spark starts its Python workers with this one; without it, whatever python3 is on the PATH.
export PYSPARK_PYTHON := $(CURDIR)/$(BIN)/python

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: java
java:
	@java -version 2>&1 | grep -qE 'version "(1[7-9]|2[0-9])' || { \
		echo "Spark needs Java 17 or newer, found: $$(java -version 2>&1 | head -1)"; \
		echo "On Debian or Ubuntu:  sudo apt-get install openjdk-17-jre-headless"; \
		echo "On macOS:             brew install openjdk@17"; exit 2; }

# The marker is newer than what it was made from exactly when the environment is up to date.
$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 13), f"Python 3.10 to 3.12 is needed, found {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

.PHONY: setup
setup: java $(VENV)/ready ## Make the virtual environment (.venv) with everything in it

OUT := demo-output
# conf/ also has the log settings. Spark's log goes to a file; if a step fails, its last 20 lines are shown.
define submit
@echo "+ spark-submit --properties-file conf/local.conf $(1)"
@SPARK_CONF_DIR=$(CURDIR)/conf $(BIN)/spark-submit --properties-file conf/local.conf $(1) \
	2>> $(OUT)/spark.log || { code=$$?; tail -n 20 $(OUT)/spark.log >&2; exit $$code; }
endef

.PHONY: demo
demo: setup ## Score real photographs and published embeddings by spark-submit, and write a page
	@mkdir -p $(OUT)
	@rm -rf $(OUT)/photographs $(OUT)/photograph_scores $(OUT)/embeddings $(OUT)/spark.log
	-$(call submit,jobs/doctor.py)
	$(call submit,jobs/demo.py tables --out $(OUT))
	$(call submit,jobs/score_table.py --source $(OUT)/embeddings --key name --embedding-col embedding)
	@$(BIN)/python jobs/demo.py predictor > $(OUT)/predictor.txt
	$(call submit,jobs/score_table.py --source $(OUT)/photographs --key name --image-col image \
		--scores $(OUT)/photograph_scores --predictor $$(cat $(OUT)/predictor.txt))
	$(call submit,jobs/demo.py page --out $(OUT))
	@echo "Open $(OUT)/index.html in a browser."

.PHONY: test
test: lint docs tests fuzz ## Everything that must pass: lint, types, docs, tests, a minute of fuzzing

.PHONY: lint
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_words.py
	$(BIN)/mypy

# A file's tests are of one process, and files go out in conftest.py's order: not by their number of tests.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What a session of Spark Connect must do as a classic one does it. make test runs their tests with the mark connect.
ON_CONNECT := $(addprefix tests/spark/,test_connect.py $(addprefix functions/test_,columns.py sql.py stage.py) pages/test_display.py)

# For the test of the review page, which is skipped, with that reason, where this cannot install one.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || { \
		as_root=$$([ $$(id -u) = 0 ] || echo 'sudo -n'); \
		$$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
		echo "No Chromium, and apt-get could not install one: the review page is not tested in a browser."

.PHONY: tests
tests: setup browser
	$(PYTEST)
	SPARK_AESTHETIC_TEST_SESSION=connect $(PYTEST) -m 'connect and not long' $(ON_CONNECT)

.PHONY: test-unit
test-unit: setup ## The tests that need no JVM
	$(PYTEST) tests/unit

.PHONY: test-spark
test-spark: setup ## The tests in one session of Spark, and those of the interfaces on Spark Connect
	$(PYTEST) tests/spark
	SPARK_AESTHETIC_TEST_SESSION=connect $(PYTEST) $(ON_CONNECT)

.PHONY: test-system
test-system: setup browser ## The tests of processes, clusters, kills, notebooks and the browser
	$(PYTEST) tests/system

# Which lines and branches the tests run, in Spark's workers and in jobs of their own too.
.PHONY: coverage
coverage: setup browser ## Run the tests and print the coverage of lines and branches (nearly twice as long as the tests)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile --no-loadscope-reorder -o timeout=900
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Damaged and built images, tars, addresses, keys and weights. FUZZ_SECONDS is how long each of two fuzz tests runs.
HOSTILE := $(addprefix tests/unit/,images/test_hostile_images.py images/test_prepare.py \
	$(addprefix webdataset/test_,hostile_tars.py tar.py staging.py) $(addprefix ingest/test_,allowed.py pace.py fetching.py) \
	$(addprefix predictors/test_,cache.py weights.py)) tests/spark/webdataset/test_hostile_shards.py tests/spark/scoring/test_hostile_names.py
FUZZ_SECONDS ?= 30

.PHONY: fuzz
fuzz: setup
	SPARK_AESTHETIC_FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/pytest -q -s --durations=0 -o timeout=0 -m '' -k mutat \
		tests/unit/images/test_hostile_images.py tests/unit/webdataset/test_hostile_tars.py

.PHONY: test-hostile
test-hostile: setup fuzz ## Hostile files, addresses and neighbours: all tests, and fuzzing (FUZZ_SECONDS=600 for longer)
	SPARK_AESTHETIC_EXAMPLES=3 $(PYTEST) -m '' $(HOSTILE)

.PHONY: audit
audit: setup ## Compare the pinned dependencies with published advisories
	$(BIN)/uv tool run pip-audit --requirement requirements.lock --no-deps --disable-pip

.PHONY: test-faults
test-faults: setup ## Kill drivers, workers and executors, fill the disk, run twice: ten kills at random moments
	SPARK_AESTHETIC_KILLS=10 $(BIN)/pytest -m '' tests/system/scoring/test_faults.py

# What else a session of Spark Connect must do: half an hour.
ALSO_ON_CONNECT := $(addprefix tests/spark/,scoring/test_jobs.py scoring/test_chunks.py training/test_estimator.py \
	functions/test_encoders.py $(addprefix curation/test_,keeping.py calibration.py quality.py export.py) ingest/test_ingest.py \
	webdataset/test_source.py) tests/system/pages/test_review.py

.PHONY: test-long
test-long: setup browser ## The long tests, also on Spark Connect, except those of make test-faults
	SPARK_AESTHETIC_EXAMPLES=3 $(PYTEST) -m long --ignore tests/system/scoring/test_faults.py
	SPARK_AESTHETIC_TEST_SESSION=connect $(PYTEST) -m 'long or not connect' $(ON_CONNECT)
	SPARK_AESTHETIC_TEST_SESSION=connect $(PYTEST) -m '' $(ALSO_ON_CONNECT)

# Each folder has an older Spark and its Delta. PYTHONPATH puts it before the packages of the environment.
.compat/%/ready: $(VENV)/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --target $(@D) pyspark==$(word 1,$(subst -, ,$*)) \
		delta-spark==$(word 2,$(subst -, ,$*)) 'importlib_metadata<=8.7.1'
	touch $@

CORE := $(addprefix tests/spark/,$(addprefix functions/test_,columns.py sql.py stage.py) pages/test_display.py \
	$(addprefix scoring/test_,jobs.py chunks.py))

# PySpark before 4.2 leaves sockets to the garbage collector.
OLDER := -W ignore::pytest.PytestUnraisableExceptionWarning

.PHONY: test-compat
test-compat: .compat/4.0.5-4.0.1/ready .compat/4.1.1-4.3.1/ready ## Run the core tests on Spark 4.0 and 4.1 with their Delta, a client of 4.2 on a server of 4.0, and Iceberg
	for versions in 4.0.5-4.0.1 4.1.1-4.3.1; do \
		PYTHONPATH=$(CURDIR)/.compat/$$versions $(PYTEST) -m '' $(OLDER) $(CORE) || exit 1; done
	$(PYTEST) -m long tests/system/test_older_server.py tests/system/test_iceberg.py

.PHONY: docs
docs: setup ## Build the documentation (build/site)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean
	@echo "Open build/site/index.html in a browser; with its search: $(BIN)/python -m http.server --directory build/site"

.PHONY: notebook
notebook: setup ## Run notebooks/image_curation.ipynb from top to bottom (build/image_curation.ipynb)
	mkdir -p build
	$(BIN)/jupyter execute --output=../build/image_curation notebooks/image_curation.ipynb

# The peers in an environment of their own: their pins would meet Spark's.
benchmarks/.venv/ready: benchmarks/requirements.lock $(VENV)/ready
	$(PYTHON) -m venv benchmarks/.venv
	$(BIN)/uv pip install --quiet --python benchmarks/.venv/bin/python --requirements benchmarks/requirements.lock
	touch $@

# clip-retrieval pins NumPy 1.
benchmarks/.venv-clip-retrieval/ready: benchmarks/requirements-clip-retrieval.lock $(VENV)/ready
	$(PYTHON) -m venv benchmarks/.venv-clip-retrieval
	$(BIN)/uv pip install --quiet --python benchmarks/.venv-clip-retrieval/bin/python \
		--requirements benchmarks/requirements-clip-retrieval.lock
	touch $@

.PHONY: bench
bench: setup benchmarks/.venv/ready benchmarks/.venv-clip-retrieval/ready ## Measure this package and its peers in turn (an hour; nothing else should run)
	$(BIN)/python benchmarks/run.py
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/chunks.py
	$(BIN)/python benchmarks/fit.py

.PHONY: lock
lock: setup ## Resolve the dependencies again (requirements.lock)
	printf 'pyspark==4.2.0\ndelta-spark==4.4.0\n' | $(BIN)/uv pip compile pyproject.toml --all-extras --universal \
		--python-version 3.10 --constraints - --no-header --no-annotate --quiet --output-file requirements.lock
	$(BIN)/uv pip compile benchmarks/requirements.in --universal --python-version 3.11 --constraints requirements.lock \
		--no-header --no-annotate --quiet --output-file benchmarks/requirements.lock
	grep -E '^(torch|torchvision|pillow|timm|safetensors)==' benchmarks/requirements.lock | \
		$(BIN)/uv pip compile benchmarks/requirements-clip-retrieval.in --python-version 3.11 --constraints - \
		--no-header --no-annotate --quiet --output-file benchmarks/requirements-clip-retrieval.lock

.PHONY: clean
clean: ## Remove what the targets made
	rm -rf $(VENV) benchmarks/.venv* .compat build dist $(OUT) spark-warehouse metastore_db .pytest_cache .mypy_cache .ruff_cache
