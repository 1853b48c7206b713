# Two commands for a newcomer: `make demo` and `make test`. Everything else is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-fusechat3 demo-fuserl test test-serving check serve install format clean-demo

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/cpu.txt requirements/constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r requirements/cpu.txt -c requirements/constraints-cpu.txt
	touch $@

demo: install
	$(BIN)/python -m jobs.demo.world --out runs/demo-world
	$(BIN)/fuseline run jobs/recipes/demo.yaml
	@echo
	@echo "chat with the fused model:  make serve"

# FuseChat-3.0 and FuseRL on a world with a math and a code domain; the second one finds the first one's answers there.
demo-fusechat3 demo-fuserl: install
	$(BIN)/python -m jobs.demo.world --out runs/demo-domains --domains
	$(BIN)/fuseline run jobs/recipes/$@.yaml
	@echo
	@echo "chat with the fused model:  .venv/bin/fuseline serve jobs/recipes/$@.yaml"

serve: install
	$(BIN)/fuseline serve jobs/recipes/demo.yaml

test: install
	$(BIN)/python -m pytest -q -m "not serving"

# All tests of the service's HTTP side, the long ones too.
test-serving: install
	$(BIN)/python -m pytest -q tests/serving -m "not serving"
	$(BIN)/python -m pytest -q -s -m serving

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not ray and not serving"

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
