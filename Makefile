# Each target prepares .venv by itself; python3 (3.11 or newer), its venv module and make are all it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test soak autobahn fuzz revoke openapi lint bandit audit format bench bench-full screenshots lock clean

run: .venv/.run
	$(BIN)/python run.py

# Several files at a time, one more than there are cores as they often wait; the tests of a file one after the other.
# In the order of their names: those of the page, the longest, are not the last.
test: .venv/.dev
	$(BIN)/python -m pytest -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder --durations=15 --cov --cov-report=term-missing

# The long walk: clients at work on a server that is killed again and again, and a checker at the end.
# It says its seed; SEED=n draws the same deeds again. STORES=servers needs mariadb-server and redis-server.
MINUTES ?= 30
STORES ?= embedded
soak: .venv/.dev
	$(BIN)/python -m tests.soak --minutes $(MINUTES) --stores $(STORES) $(if $(SEED),--seed $(SEED))

# RFC 6455 and 7692: every case of the Autobahn suite against an echo on the server's connection code.
autobahn: .venv/.dev
	$(BIN)/python -m tests.autobahn

# A million frames of rubbish, beside two who chat. It says its seed; SEED=n draws the same again.
FRAMES ?= 1000000
fuzz: .venv/.dev
	$(BIN)/python -m tests.fuzz --frames $(FRAMES) $(if $(SEED),--seed $(SEED))

# The sessions of many users end at once under their open sockets.
SOCKETS ?= 5000
revoke: .venv/.dev
	$(BIN)/python -m tests.revoke --sockets $(SOCKETS)

# What is served as /openapi.json, of docs/openapi.yaml: the server itself knows no YAML.
openapi: .venv/.dev
	$(BIN)/python -c "import json, yaml; print(json.dumps(yaml.safe_load(open('docs/openapi.yaml')), indent=1))" > chat_server/api/openapi.json

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bandit: .venv/.dev
	$(BIN)/bandit -q -c bandit.yaml -r chat_server run.py

# Asks PyPI what is known of the exact versions that are installed: it needs the network, and fails without an answer.
audit: bandit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements.txt
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-dev.txt

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.dev
	$(BIN)/python -m bench.full --quick

bench-full: .venv/.dev
	$(BIN)/python -m bench.full

# Renews docs/images, which the README shows. Needs chromium.
screenshots: .venv/.dev
	$(BIN)/python -m tests.browser.screenshots

# The locks are made from the bounds in setup.cfg.
lock: .venv/.dev
	$(BIN)/pip-compile -q --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--allow-unsafe -o requirements.txt setup.cfg
	$(BIN)/pip-compile -q --generate-hashes --no-strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--allow-unsafe --extra dev --extra bench -o requirements-dev.txt setup.cfg

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chat_server needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

.venv/.run: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	touch $@

.venv/.dev: requirements-dev.txt .venv/.run
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@
