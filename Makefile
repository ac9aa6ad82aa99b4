# make run                       an environment if needed, then the default suite (config/quick.yaml)
# make run SUITE=smoke           another suite, by name or path;  ARGS="-n" is passed on to snakemake
# make test                      the tests;  ARGS="-k lora" is passed on to pytest
# make check METHOD=mine         does methods/mine.py keep the contract?
# make retry STATUS=oom,error    forget these rows of SUITE and run it again
# make merge FROM=DIR            take the results of SUITE that another machine made
# make lock                      requirements.lock anew from pyproject.toml, in a clean environment

PYTHON ?= python3
SUITE ?= quick
STATUS ?= oom,timeout,error
ARGS ?=

# An active environment that has what is pinned, else .venv; first on the path, for the jobs that snakemake starts.
ENVIRONMENT = python=$$($(PYTHON) -m harness.environment) && export PATH="$$(dirname "$$python"):$$PATH"

.PHONY: run smoke test check retry merge lock

run:
	@$(ENVIRONMENT) && python -m harness.unlock && python -m snakemake --cores all --config suite=$(SUITE) $(ARGS)

smoke:
	@$(MAKE) --no-print-directory run SUITE=smoke

test:
	@$(ENVIRONMENT) && python -m pytest -q -n logical --maxprocesses 4 --dist loadfile $(ARGS)

check:
	@$(ENVIRONMENT) && python -m harness.conformance $(or $(METHOD),$(error Name a file of methods/: make check METHOD=mine))

retry:
	@$(ENVIRONMENT) && python -m harness.retry $(SUITE) --status $(STATUS)
	@$(MAKE) --no-print-directory run

merge:
	@$(ENVIRONMENT) && results=$$(python -m harness.suite $(SUITE)) && \
	python -m snakemake --cores 1 --quiet all --config suite=$(SUITE) -- "$$results/plan.json" && \
	python -m evidence.merge "$$results" $(or $(FROM),$(error Name the other results folder: make merge SUITE=$(SUITE) FROM=DIR))

lock:
	rm -rf .venv && $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	.venv/bin/python -m pip install '.[test]'
	(sed -n '/^#/p' requirements.lock; .venv/bin/python -m pip freeze --exclude tuning-fork | sed 's/+[^+]*$$//') > lock.new
	mv lock.new requirements.lock
