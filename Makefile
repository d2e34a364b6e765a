# Each target prepares .venv automatically. Requirements: python3 (3.11 or later) with its venv module, and make.
# make test PYTHON=python3.13 uses that Python in a separate venv, .venv-python3.13.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

.PHONY: run test test-cluster test-failures test-bare search soak autobahn fuzz revoke openapi lint bandit audit format bench bench-full screenshots lock clean
.DELETE_ON_ERROR:

run: $(VENV)/.run
	$(BIN)/python run.py

# Two processes per core, because tests often wait. The tests of one file run in sequence. Files run in the order of
# their names, so the slowest ones (tests/browser) do not come last.
PYTEST := $(BIN)/python -m pytest -n $$(($$(nproc) * 2)) --dist loadfile --no-loadscope-reorder --durations=15
# make test COVERAGE=1 also measures line coverage, which takes half as long again, and fails under 95 % unless tests
# were skipped. A temporary folder for its data keeps concurrent runs apart.
test: $(VENV)/.dev
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && COVERAGE_FILE="$$folder/coverage" \
		$(PYTEST) $(if $(COVERAGE),--cov --cov-report=term-missing) --ignore=tests/cluster

# Several processes: the whole e2e suite on two processes behind a balancer that sends each request and each socket to
# the next one, and tests/cluster. In test-failures, sessions end, and processes, Redis and MongoDB fail, under traffic.
FAILURES := $(addprefix tests/cluster/test_,endings.py failures.py outages.py)
test-cluster: $(VENV)/.dev
	CHAT_TEST_PROCESSES=2 $(PYTEST) $(FAILURES:%=--ignore=%) tests/cluster tests/e2e
test-failures: $(VENV)/.dev
	$(PYTEST) $(FAILURES)

# As on a machine without the optional programs: collect all tests, and run those that need most of these programs.
test-bare: $(VENV)/.dev
	CHAT_TEST_ALL= CHAT_TEST_HIDE=all $(BIN)/python -m pytest -q --collect-only > /dev/null
	CHAT_TEST_ALL= CHAT_TEST_HIDE=all $(BIN)/python -m pytest -q tests/browser tests/contract/test_backplane.py \
		tests/faults/test_redis.py tests/faults/test_tls.py

# Hypothesis searches SEARCH times as long as in `make test`, with other random choices in each run.
SEARCH ?= 20
search: $(VENV)/.dev
	CHAT_TEST_SEARCH=$(SEARCH) $(BIN)/python -m pytest --timeout=0 tests/faults/test_limit_bypass.py tests/contract \
		tests/protocol_model/test_protocol_model.py

# The soak test: clients use a server that is killed again and again; at the end, a checker compares the stores.
# It prints its seed; SEED=n repeats the same actions. STORES=servers, and STORES=cluster with four processes, need
# mariadb-server and redis-server.
MINUTES ?= 30
STORES ?= embedded
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --stores $(STORES) $(if $(SEED),--seed $(SEED))

# RFC 6455 and 7692: all cases of the Autobahn suite, against an echo server with the connection code of chat_server.
autobahn: $(VENV)/.dev
	$(BIN)/python -m tests.autobahn

# A million random and invalid frames while two users chat. It prints its seed; SEED=n repeats the same frames.
FRAMES ?= 1000000
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --frames $(FRAMES) $(if $(SEED),--seed $(SEED))

# End the sessions of many users at the same moment, while their sockets are open.
SOCKETS ?= 5000
revoke: $(VENV)/.dev
	$(BIN)/python -m tests.revoke --sockets $(SOCKETS)

# Convert docs/openapi.yaml to the file served as /openapi.json: the server has no YAML parser.
openapi: $(VENV)/.dev
	$(BIN)/python -c "import json, yaml; print(json.dumps(yaml.safe_load(open('docs/openapi.yaml')), indent=1))" > chat_server/api/openapi.json

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.phrases

bandit: $(VENV)/.dev
	$(BIN)/bandit -q -c bandit.yaml -r chat_server run.py

# Ask PyPI for known vulnerabilities of the locked versions. It needs the network and fails without an answer.
audit: bandit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.txt
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-dev.txt
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-bench.txt

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench
	$(BIN)/python -m bench.goals --quick

bench-full: $(VENV)/.bench
	$(BIN)/python -m bench.goals

# Renew docs/images, which the README shows. Needs chromium.
screenshots: $(VENV)/.dev
	$(BIN)/python -m tests.browser.screenshots

# Write the lock files for all supported Pythons from the bounds in setup.cfg. Pinned versions stay until
# `make lock UPGRADE=--upgrade`.
COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--custom-compile-command "make lock" $(UPGRADE) setup.cfg
lock: $(VENV)/.dev
	$(COMPILE) -o requirements.txt
	$(COMPILE) --extra dev -c requirements.txt -o requirements-dev.txt
	$(COMPILE) --extra bench -c requirements-dev.txt -o requirements-bench.txt

clean:
	rm -rf .venv .venv-* build dist *.egg-info

# If $(VENV) was made with another Python than $(PYTHON), make it again.
WHICH := import sys; print(sys.version, sys.base_prefix)
ifneq ($(shell $(BIN)/python -c '$(WHICH)' 2>/dev/null),$(shell $(PYTHON) -c '$(WHICH)'))
$(VENV)/pyvenv.cfg: force
endif
.PHONY: force

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chat_server needs Python 3.11 or later; choose one, for example make PYTHON=python3.11")'
	@echo "Preparing $(VENV) with $$($(PYTHON) --version), once ..."
	@$(PYTHON) -m venv --clear $(VENV)

INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r

$(VENV)/.run: requirements.txt $(VENV)/pyvenv.cfg
	@echo "Installing the server's packages into $(VENV) (about half a minute) ..."
	@$(INSTALL) $<
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@echo "Installing the test tools into $(VENV) (about a minute) ..."
	@$(INSTALL) $<
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.dev
	@echo "Installing the benchmark tools into $(VENV) ..."
	@$(INSTALL) $<
	@touch $@
