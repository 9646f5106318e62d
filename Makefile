# What people run. Each target creates .venv when it is missing or behind; it needs Python 3.11 or newer.
# Another interpreter: make PYTHON=/path/to/python3.12 test

.POSIX:

PYTHON =
BIN = .venv/bin
INSTALLED = .venv/installed
PEERS = .venv-bench/installed
FUZZER = .venv-fuzz/installed
AXE = tests/browser/.axe/axe.min.js
AXE_VERSION = 4.14.1

help:
	@echo 'make demo    show contexts, forks and neighbors in the terminal'
	@echo 'make lab     open the notebooks in JupyterLab'
	@echo 'make test    lint, types, tests, doctests, notebooks'
	@echo 'make lint    style and types only'
	@echo 'make format  rewrite the code in the common style'
	@echo 'make axe     fetch axe-core from npm, which checks accessibility in the tests'
	@echo 'make bench   measure against other ways, for a quarter of an hour'
	@echo 'make bench-neighbors   the same of searches by an index under conditions'
	@echo 'make soak    the tests on random data, of many writers at once, and of all through PgBouncer, for long'
	@echo 'make fuzz    hostile input, 100,000 times for each of what reads any; Linux only'
	@echo 'make package  build, install and try the wheel and the sdist on each Python that is here'

demo: $(INSTALLED)
	@$(BIN)/contextkit demo

# JupyterLab refuses root unless told.
lab: $(INSTALLED)
	@root=; [ "$$(id -u)" != 0 ] || root=--allow-root; $(BIN)/jupyter lab $$root --notebook-dir=notebooks

lint: style mypy pyright

style: $(INSTALLED)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

mypy: $(INSTALLED)
	@$(BIN)/mypy --strict -p contextkit -p tests.typing

pyright: $(INSTALLED)
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

# Side by side, as much in the tests waits for processes.
test: style
	@$(MAKE) -s -j 4 mypy pyright tests notebooks

# Three at once; a file's tests stay together and share what it sets up, the slowest first. With bytecode written,
# whatever the environment says: the tests start hundreds of processes. NumPy's threads would only wait for each other.
tests: $(INSTALLED)
	@PYTHONDONTWRITEBYTECODE= OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder

# The notebooks run in a home of their own, never on a user's database. Where root runs this, an account
# without privileges runs PostgreSQL and has to reach that home.
notebooks: $(INSTALLED)
	@home=$$(mktemp -d) && chmod 711 "$$home" && trap 'sleep 1; rm -rf "$$home"' EXIT && \
	CONTEXTKIT_HOME=$$home DATABASE_URL= $(BIN)/pytest -q --nbmake notebooks

# For the tests in a browser, which do without where it is missing.
axe: $(AXE)

$(AXE):
	@mkdir -p $(@D)
	@cd $(@D) && npm pack --silent axe-core@$(AXE_VERSION) >/dev/null && \
	tar -xzf axe-core-$(AXE_VERSION).tgz --strip-components=1 package/axe.min.js && rm axe-core-$(AXE_VERSION).tgz

# Some of it alone: make GROUPS='loads searches' bench
bench: $(INSTALLED) $(PEERS)
	@$(BIN)/python -m tests.benchmarks $(GROUPS)

bench-neighbors: $(INSTALLED)
	@$(BIN)/python -m tests.benchmarks.neighbors

# Another PgBouncer than the installed one: make CONTEXTKIT_TEST_POOLER=/path/to/pgbouncer soak
# Those of faults mostly wait.
soak: $(INSTALLED)
	@$(BIN)/pytest -q -n 4 --dist load -m soak tests/faults
	@CONTEXTKIT_EXAMPLES=$${CONTEXTKIT_EXAMPLES:-5000} $(BIN)/pytest -q -m 'hypothesis or soak' --ignore=tests/faults
	@CONTEXTKIT_SECONDS=$${CONTEXTKIT_SECONDS:-60} $(BIN)/pytest -q tests/test_concurrency.py
	@CONTEXTKIT_SECONDS=$${CONTEXTKIT_SECONDS:-60} CONTEXTKIT_TEST_POOLER=$${CONTEXTKIT_TEST_POOLER:-pgbouncer} \
	$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder

# Some of it alone: make TARGETS='read_oasst files' fuzz
fuzz: $(FUZZER)
	@.venv-fuzz/bin/python -m tests.fuzz $(TARGETS)

package: $(INSTALLED)
	@$(BIN)/python -m tests.packaging

$(INSTALLED): pyproject.toml constraints.txt
	@new='import ensurepip, sys; sys.exit(sys.version_info < (3, 11))'; \
	$(BIN)/python -c "$$new" 2>/dev/null || { \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11 ''; do \
			"$$python" -c "$$new" 2>/dev/null && break; \
		done; \
		[ -n "$$python" ] || { echo 'no Python 3.11 or newer with venv (Debian: apt install python3-venv); make PYTHON=/path/to/it' >&2; exit 1; }; \
		"$$python" -m venv --clear .venv || { rm -rf .venv; exit 1; }; \
	}
	@echo 'installing into .venv; once, for a minute or two'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $(INSTALLED)

# What is measured beside and needs older drivers than contextkit.
$(PEERS): $(INSTALLED) tests/benchmarks/peers.txt
	@$(BIN)/python -m venv --clear .venv-bench
	@echo 'installing the peers into .venv-bench'
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check vecs langchain-postgres \
		-c tests/benchmarks/peers.txt
	@touch $(PEERS)

# An environment of its own, as atheris has no wheels but for Linux.
$(FUZZER): $(INSTALLED)
	@$(BIN)/python -m venv --clear .venv-fuzz
	@echo 'installing the fuzzer into .venv-fuzz'
	@.venv-fuzz/bin/python -m pip install -qq --disable-pip-version-check -e . 'atheris>=3' -c constraints.txt
	@touch $(FUZZER)

.PHONY: help demo lab lint style mypy pyright format test tests notebooks axe bench bench-neighbors soak fuzz package
