# Everything starts here: `make` alone lists what there is. Any POSIX shell, make 3.81 or newer.

PYTHON ?= python3
# Only from the command line: a PORT in the environment belongs to somebody else.
PORT = 8888
OPEN = yes
TORCH_INDEX =
WHEELS =
PLATFORM =
PY =
SLUG =
STALE =
FORCE =
PART =
ONLY =
QUICK =

# `environment.py lab|dev|bench` makes .venv ready (nothing to do: a blink), then becomes .venv's
# Python.
setup = $(strip $(PYTHON) authoring/environment.py \
	$(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)") $(if $(WHEELS),--wheels "$(WHEELS)"))
need_python = command -v $(PYTHON) >/dev/null 2>&1 || \
	{ echo "There is no $(PYTHON) here: install Python 3.11 or newer from https://www.python.org" \
	"and run make again." >&2; exit 1; }

.PHONY: help lab doctor wheelhouse test build bench clean

help:
	@echo "make lab      open the course in JupyterLab (sets everything up the first time)"
	@echo "                PORT=8890  another port          OPEN=no  do not open a browser"
	@echo "                TORCH_INDEX=https://download.pytorch.org/whl/cpu  PyTorch from there"
	@echo "                WHEELS=folder  install without a network, from a wheelhouse"
	@echo "make doctor   say what is wrong with this machine or this set-up, and what to do about it"
	@echo "make wheelhouse  download what make lab needs, once, for machines without a network"
	@echo "                PLATFORM=windows PY=3.12  for such machines (linux, linux-arm, macos)"
	@echo "make test     check everything: style, types, built notebooks, tests, notebooks run again"
	@echo "                PART=mypy  one part only (ruff, mypy, build, pytest, nbval, colab)"
	@echo "make build    build notebooks, exercises and solutions from authoring/, those that changed"
	@echo "                SLUG=00_start_here  these only   STALE=1  also what the library outdated"
	@echo "                FORCE=1  all of them"
	@echo "make bench    measure the library beside its peers: primitives, networks, the 2D task"
	@echo "                QUICK=1  the small cases only    ONLY=warp  what has this in its name"
	@echo "                PART=task  one part only (primitives, networks, task, agreement)"
	@echo "make clean    remove caches and what a build left behind (never work/, never .venv)"

lab:
	@$(need_python)
	@$(setup) lab --run -m authoring.lab --port $(PORT) $(if $(filter no,$(OPEN)),--no-browser)

# Not by `setup`: what is to be examined stays as it is.
doctor:
	@$(need_python)
	@$$(.venv/bin/python -c "" 2>/dev/null && echo .venv/bin/python || echo $(PYTHON)) \
	  -m course_lib.doctor

wheelhouse:
	@$(need_python)
	@$(PYTHON) -m authoring.wheelhouse $(if $(TORCH_INDEX),--torch-index "$(TORCH_INDEX)") \
	  $(if $(PLATFORM),--platform "$(PLATFORM)") $(if $(PY),--python "$(PY)")

test:
	@$(need_python)
	@$(setup) dev --run -m authoring.test_all $(PART)

build:
	@$(need_python)
	@$(setup) dev --run -m authoring.build $(SLUG) $(if $(STALE),--stale) $(if $(FORCE),--force)

bench:
	@$(need_python)
	@$(setup) bench --run -m benchmarks $(PART) $(if $(QUICK),--quick) \
	  $(if $(ONLY),--only "$(ONLY)")

# work/ holds what learners wrote and .venv is slow to make again: neither is even looked into.
clean:
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
	@find . \( -path ./work -o -path './.venv*' -o -path ./.git \) -prune -o \
	  \( -name __pycache__ -o -name .ipynb_checkpoints -o -name '*.tmp' -o -name '*.pyc' \) \
	  -prune -exec rm -rf {} +
	@echo "Caches and build leftovers are gone; work/ and .venv are as they were."
