# `make demo` runs the main job on real parts, `make test` passes the tests. Both set up what they need.

PYTHON ?= /usr/bin/python3
BIN := .venv/bin
SOURCES := certfan tests config
# Hundreds of short-lived processes would each compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv lab check format test sweep demo bench bench-fanout bench-acme bench-responder bench-share bench-status wheel deb docs clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

venv: .venv/ready
.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends python3-venv; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

lab: .venv/ready  ## install what the real parts need (Debian packages, Pebble)
	@bash tests/lab/setup.sh

# One process more than cores, as unit tests also wait. None of them needs schemathesis' plugin.
check: .venv/ready  ## the quick part: format, lint, types, all but the long unit tests; no network, no root
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pytest -q -n 3 -p no:schemathesis -m "not long" tests/unit

format: .venv/ready  ## let ruff format and mend what it can
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

test: lab        ## every test, the ones against real parts included; long sweeps run a seeded tenth
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check --quiet $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pytest -n 2 tests/unit tests/real

sweep: lab       ## every point of every sweep
	CERTFAN_SWEEP=all $(BIN)/pytest -m sweep -s tests

demo: lab        ## the main job on real parts; MODE=full never falls back, KEEP=1 leaves it running
	@$(BIN)/python -m tests.lab.demo --mode=$(or $(MODE),auto) $(if $(KEEP),--keep)

bench: lab       ## the figures of docs/benchmarks.md, into build/bench/demo.json
	@$(BIN)/python -m tests.lab.bench

bench-fanout: .venv/ready  ## one announcement to 5,000 agents, beside Mosquitto, into build/bench/fanout.json
	@$(BIN)/python -m tests.lab.bench_fanout

bench-acme: lab  ## certificates from one Pebble, beside lego, certbot and Caddy, into build/bench/acme.json
	@bash tests/lab/setup.sh bench
	@$(BIN)/python -m tests.lab.bench_acme

bench-responder: lab  ## answers to challenges, beside nginx and Caddy, into build/bench/responder.json
	@bash tests/lab/setup.sh bench
	@$(BIN)/python -m tests.lab.bench_responder

bench-share: lab ## bundles published, beside the same files written plainly, into build/bench/share.json
	@$(BIN)/python -m tests.lab.bench_share

bench-status: lab ## the status of 1,000 certificates on 20 consumers while orders run, into build/bench/status.json
	@$(BIN)/python -m tests.lab.bench_status

wheel: .venv/ready  ## the wheel, into build/dist
	@$(BIN)/python config/release/build.py wheel

deb: .venv/ready  ## a Debian package of each wing, into build/dist
	@$(BIN)/python config/release/build.py deb

docs: .venv/ready  ## docs/reference anew, from the code
	@$(BIN)/python config/release/reference.py

clean:           ## remove what the other targets made in this folder
	rm -rf .venv build
