# Everything a newcomer types. `make demo` sets up what it needs; `make test` is what CI runs.
PYTHON ?= python3.11
VENV := .venv
RUN := $(CURDIR)/$(VENV)/bin
export PATH := $(RUN):$(PATH)
export ONEDNN_MAX_CPU_ISA := AVX512_CORE_BF16
export MKL_CBWR := AVX512,STRICT

.PHONY: setup demo tiny test fast check ceph postgres chromium wordnet prometheus buildah debian lock audit chaos clean

setup: $(VENV)/.ready $(VENV)/oracle/.ready

$(VENV)/.ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 setup"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	grep '^setuptools==' constraints.txt > $(VENV)/setuptools.txt  # first: what builds the others is checked too
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/setuptools.txt
	DS_BUILD_OPS=0 $(RUN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --require-hashes -r constraints.txt
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(RUN)/python -m training.engine
	@touch $@

# A torchvision for one test, outside site-packages: built for CUDA, it would break transformers and vLLM there.
$(VENV)/oracle/.ready: tests/video2lora/golden/requirements.txt | $(VENV)/.ready
	rm -rf $(@D)
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) -r $<
	@touch $@

# Programs of Debian's for the tests, unpacked without root: a real S3 server, a real PostgreSQL for tracking, a browser for pages, WordNet
# for WUPS, Prometheus for alerts, Buildah and a Debian to build images from; a minute and 950 MB in all, nothing where the machine has one.
# Where one cannot be had `make test` leaves its tests out and says so; with V2L_REQUIRE_CEPH=1, as CI has it, it fails.
DEBIAN := ceph postgres chromium wordnet prometheus buildah debian

$(DEBIAN): %: $(VENV)/%/.ready

$(DEBIAN:%=$(VENV)/%/.ready): $(VENV)/%/.ready: tests/servers/fetch_debian.sh | $(VENV)/.ready
	tests/servers/fetch_debian.sh $* $(@D)
	@touch $@

demo: setup
	$(RUN)/video2lora demo

tiny: setup
	VIDEO2LORA_DATA=$${VIDEO2LORA_DATA:-data/tiny} $(RUN)/video2lora demo --recipe tiny

check: setup
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports
	$(RUN)/mypy

# constraints.txt anew after a change of its pins, which must be installed: hashes, and which image holds what. docs/security.md
lock: setup
	$(RUN)/python -m infra.lock

# Known vulnerabilities of what is pinned; says so where no service tells of any, and with V2L_REQUIRE_AUDIT=1 fails there.
audit: setup
	infra/audit.sh constraints.txt

# Two processes of one thread each, or the two hold each other up (one test took 65 s instead of 3); the tests of a file stay together.
FAST := OMP_NUM_THREADS=1 $(RUN)/pytest -m "not slow" -n 2 --dist loadfile
SLOW := OMP_NUM_THREADS=1 $(RUN)/pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder --durations=40

fast: setup
	$(FAST)

test: check
	@$(MAKE) --no-print-directory --keep-going $(DEBIAN) || test -z "$$V2L_REQUIRE_CEPH"
	$(FAST)
	$(SLOW)

# Each fault at random points, ten times: hours. `make chaos CHAOS=1 ON=tests/faults/test_frames.py` tries one file. docs/faults.md
CHAOS ?= 10
ON ?= tests/faults

chaos: setup
	mkdir -p data && rm -f data/chaos.jsonl
	V2L_CHAOS=$(CHAOS) V2L_CHAOS_LOG=$(CURDIR)/data/chaos.jsonl $(RUN)/pytest -vv $(ON); code=$$?; \
	$(RUN)/python -m tests.faults.results data/chaos.jsonl; exit $$code

clean:
	rm -rf $(VENV) data
