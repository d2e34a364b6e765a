# Each target prepares .venv by itself. It needs python3 (3.11 or later), its venv module and make.
# make test PYTHON=python3.13 uses that Python, in a .venv of its own.
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin

.PHONY: run test test-bare soak autobahn fuzz revoke openapi lint bandit audit format bench bench-full screenshots lock clean
.DELETE_ON_ERROR:

run: $(VENV)/.run
	$(BIN)/python run.py

# Several files at a time, one more than there are cores as tests often wait; the tests of one file in sequence. In the order of their names: the tests of the page, which
# take longest, do not come last. The coverage data lie in a folder of their own, apart from those of another run.
test: $(VENV)/.dev
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && COVERAGE_FILE="$$folder/coverage" \
		$(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --dist loadfile --no-loadscope-reorder --durations=15 --cov --cov-report=term-missing

# As on a machine without the optional programs: collects all tests, and runs the ones that need most of them.
test-bare: $(VENV)/.dev
	CHAT_TEST_ALL= CHAT_TEST_HIDE=all $(BIN)/python -m pytest -q --collect-only > /dev/null
	CHAT_TEST_ALL= CHAT_TEST_HIDE=all $(BIN)/python -m pytest -q tests/browser tests/faults/test_redis.py tests/faults/test_tls.py

# The long walk: clients at work on a server that is killed again and again, and a checker at the end.
# It says its seed; SEED=n draws the same deeds again. STORES=servers needs mariadb-server and redis-server.
MINUTES ?= 30
STORES ?= embedded
soak: $(VENV)/.dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --stores $(STORES) $(if $(SEED),--seed $(SEED))

# RFC 6455 and 7692: every case of the Autobahn suite against an echo on the server's connection code.
autobahn: $(VENV)/.dev
	$(BIN)/python -m tests.autobahn

# A million frames of rubbish, beside two who chat. It says its seed; SEED=n draws the same again.
FRAMES ?= 1000000
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz --frames $(FRAMES) $(if $(SEED),--seed $(SEED))

# The sessions of many users end at once under their open sockets.
SOCKETS ?= 5000
revoke: $(VENV)/.dev
	$(BIN)/python -m tests.revoke --sockets $(SOCKETS)

# What is served as /openapi.json, of docs/openapi.yaml: the server itself knows no YAML.
openapi: $(VENV)/.dev
	$(BIN)/python -c "import json, yaml; print(json.dumps(yaml.safe_load(open('docs/openapi.yaml')), indent=1))" > chat_server/api/openapi.json

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bandit: $(VENV)/.dev
	$(BIN)/bandit -q -c bandit.yaml -r chat_server run.py

# Asks PyPI what is known of the exact versions that are installed: it needs the network, and fails without an answer.
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

# Renews docs/images, which the README shows. Needs chromium.
screenshots: $(VENV)/.dev
	$(BIN)/python -m tests.browser.screenshots

# One lock file for all supported Pythons, from the bounds in setup.cfg. Pinned versions stay until
# `make lock UPGRADE=--upgrade`.
COMPILE = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--custom-compile-command "make lock" $(UPGRADE) setup.cfg
lock: $(VENV)/.dev
	$(COMPILE) -o requirements.txt
	$(COMPILE) --extra dev -c requirements.txt -o requirements-dev.txt
	$(COMPILE) --extra bench -c requirements-dev.txt -o requirements-bench.txt

clean:
	rm -rf .venv .venv-* build dist *.egg-info

# The Python that made $(VENV) must be $(PYTHON): another one is made anew.
WHICH := import sys; print(sys.version, sys.base_prefix)
ifneq ($(shell $(BIN)/python -c '$(WHICH)' 2>/dev/null),$(shell $(PYTHON) -c '$(WHICH)'))
$(VENV)/pyvenv.cfg: anew
endif
.PHONY: anew

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chat_server needs Python 3.11 or later; name one: make PYTHON=python3.11")'
	@echo "Preparing $(VENV) with $$($(PYTHON) --version), once ..."
	@$(PYTHON) -m venv --clear $(VENV)

INSTALL = $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r

$(VENV)/.run: requirements.txt $(VENV)/pyvenv.cfg
	@echo "Installing the server's packages into $(VENV) (about half a minute) ..."
	@$(INSTALL) $<
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.run
	@echo "Installing the tools of the tests into $(VENV) (about a minute) ..."
	@$(INSTALL) $<
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.dev
	@echo "Installing the tools of the measurements into $(VENV) ..."
	@$(INSTALL) $<
	@touch $@
