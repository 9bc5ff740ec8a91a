# `make demo` sets everything up and shows MAE learning; `make test` checks everything.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := PATH="$(CURDIR)/$(BIN):$$PATH" MPLBACKEND=agg
EXTRA  ?= dev

.PHONY: demo test docs lab bench readme notebooks prepare

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv || true
	$(BIN)/python -m uv pip install -q --python $(BIN)/python -e '.[$(EXTRA)]' || $(BIN)/python -m pip install -q -e '.[$(EXTRA)]'
	touch $@

demo: $(VENV)/.installed          ## pre-train MAE on the built-in images, judge it, draw it (minutes on a laptop)
	$(RUN) mimrepro demo

test: $(VENV)/.installed          ## all tests: those of the package, then every notebook from top to bottom
	$(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile
	$(RUN) OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing

lab: $(VENV)/.installed           ## open the notebooks
	$(RUN) jupyter lab nbs/index.ipynb

$(VENV)/.docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv || true
	$(BIN)/python -m uv pip install -q --python $(BIN)/python -e '.[docs]' || $(BIN)/python -m pip install -q -e '.[docs]'
	touch $@

docs: $(VENV)/.docs               ## one searchable site in _docs: notebooks, modules, papers; read it with `python -m http.server -d _docs`
	$(RUN) OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 mkdocs build -f mkdocs.yml

bench: $(VENV)/.installed         ## time a pre-training step beside Hugging Face's and lightly's, draw the performance page
	$(BIN)/python -m pip install -q -e '.[dev,bench]'
	$(RUN) mimrepro bench
	$(RUN) mimrepro performance

readme: $(VENV)/.installed        ## README.md from nbs/index.ipynb
	$(RUN) python tools/readme.py

notebooks: $(VENV)/.installed     ## run every notebook and keep its outputs
	$(RUN) python tools/run_nbs.py

prepare: $(VENV)/.installed       ## before a commit: export, clean, README
	$(RUN) nbdev_export
	$(RUN) nbdev_clean
	$(MAKE) -s readme
