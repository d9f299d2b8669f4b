# Everything happens in a private virtual environment, .venv; a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := out/phantom-model
DOMAIN := "invented, procedural tissue, whatever its labels are called"

.PHONY: help demo test test-all lint format bench bench-utility phantom-model phantom-bank phantom-projection solver-table loop clean

help:
	@echo "make demo           builds specs/demo.yaml into out/demo and shows how to look at it"
	@echo "make test           lint, types, import rules and the quick tests"
	@echo "make test-all       the slow tests as well (kills, clusters, S3)"
	@echo "make bench          speed and memory, printed"
	@echo "make bench-utility  what synthetic tiles are worth for rare classes, and under each mechanism (hours)"
	@echo "make loop           builds a set, fine-tunes the model on it, builds with the result, compares the two"
	@echo "make phantom-model  trains the built-in model anew (2.5 hours of 2 CPU cores with AMX, between them minutes of a GPU)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,jobs]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run
	$(BIN)/synthfactory build specs/demo.yaml
	$(BIN)/synthfactory verify out/demo
	$(BIN)/synthfactory preview out/demo -o out/demo-preview.png
	@echo
	@echo "out/demo holds 72 labelled synthetic tiles as WebDataset shards; out/demo/README.md says what they are."
	@echo "Look at them: open out/demo-preview.png. Change specs/demo.yaml and run"
	@echo "  $(BIN)/synthfactory build specs/demo.yaml"

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m 'not gpu and not gated' --timeout=1200

bench: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/throughput.py
	$(BIN)/python tests/benchmarks/sampling.py
	$(BIN)/python tests/benchmarks/latency.py
	$(BIN)/python tests/benchmarks/loader.py
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/neighbours.py
	$(BIN)/python tests/benchmarks/planted_copies.py
	$(BIN)/python tests/benchmarks/evaluation.py

bench-utility: $(VENV)/.dev
	$(BIN)/python tests/benchmarks/utility.py

# The built-in model from nothing: tiles, encoder and autoencoder side by side, diffusion, more of it on a GPU (on CPUs that part
# takes long), export, figures. Resumes where it stopped.
phantom-model: $(VENV)/.run
	$(BIN)/synthfactory phantom shards $(MODEL)/shards --cohort train --per-class 3000
	$(BIN)/synthfactory phantom shards $(MODEL)/harder --cohort train --class phantom-keratin --class phantom-stroma \
		--per-class 3000 --first-patient 375
	$(BIN)/synthfactory-train run train/configs/phantom-encoder.yaml --run $(MODEL)/encoder & first=$$!; \
	$(BIN)/synthfactory-train run train/configs/phantom-vae.yaml --run $(MODEL)/vae && wait $$first
	$(BIN)/synthfactory-train run train/configs/phantom-sit.yaml --run $(MODEL)/sit
	test -f $(MODEL)/first/config.json || $(BIN)/synthfactory-train export $(MODEL)/sit $(MODEL)/first --id phantom \
		--revision 2 --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory-train run train/configs/phantom-further.yaml --run $(MODEL)/further
	test -f $(MODEL)/second/config.json || $(BIN)/synthfactory-train export $(MODEL)/further $(MODEL)/second --id phantom \
		--revision 3 --half --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory-train run train/configs/phantom-decoder.yaml --run $(MODEL)/decoder
	test -f $(MODEL)/third/config.json || $(BIN)/synthfactory-train export $(MODEL)/decoder $(MODEL)/third --id phantom \
		--revision 4 --ema 0.998 --half --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory phantom shards $(MODEL)/more --cohort train --per-class 3000 --first-patient 1000
	$(BIN)/synthfactory phantom shards $(MODEL)/more-structure --cohort train --class phantom-keratin --class phantom-stroma \
		--class phantom-gland --per-class 2000 --first-patient 1375
	$(BIN)/synthfactory-train run train/configs/phantom-deeper.yaml --run $(MODEL)/deeper
	test -f $(MODEL)/fourth/config.json || $(BIN)/synthfactory-train export $(MODEL)/deeper $(MODEL)/fourth --id phantom \
		--revision 5 --ema 0.999 --half --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory-train run train/configs/phantom-decoder.yaml --set base=$(MODEL)/fourth --set optimiser.steps=1400 --set seed=6 \
		--run $(MODEL)/decoder-again
	test -f $(MODEL)/fifth/config.json || $(BIN)/synthfactory-train export $(MODEL)/decoder-again $(MODEL)/fifth --id phantom \
		--revision 6 --ema 0.998 --half --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory phantom shards $(MODEL)/still-more --cohort train --per-class 3000 --first-patient 2000
	$(BIN)/synthfactory phantom shards $(MODEL)/still-more-structure --cohort train --class phantom-keratin --class phantom-stroma \
		--class phantom-gland --per-class 2000 --first-patient 2375
	$(BIN)/synthfactory-train run train/configs/phantom-longer.yaml --run $(MODEL)/longer
	test -f $(MODEL)/sixth/config.json || $(BIN)/synthfactory-train export $(MODEL)/longer $(MODEL)/sixth --id phantom \
		--revision 8 --ema 0.999 --half --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory-train run train/configs/phantom-guided.yaml --run $(MODEL)/guided
	test -f $(MODEL)/export/config.json || $(BIN)/synthfactory-train export $(MODEL)/guided $(MODEL)/export --id phantom --revision 9 \
		--ema 0.995 --half --licence Apache-2.0 --domain $(DOMAIN)
	$(BIN)/synthfactory-train measure $(MODEL)/export --cache $(MODEL)/judge --per-class 220 --solver ab2 --steps 10 --scale 1.5

# The bank that the demo draws from: invented patients that no model was trained on.
phantom-bank: $(VENV)/.run
	rm -f specs/phantom-bank.parquet
	$(BIN)/synthfactory phantom bank specs/phantom-bank.parquet --cohort bank

# The projection that mechanism dp takes by default: from the cohort that the model was trained on, which is nobody's data.
phantom-projection: $(VENV)/.dev
	test -f out/projection/bank.parquet || \
		$(BIN)/synthfactory phantom bank out/projection/bank.parquet --cohort train --per-class 200
	rm -f synthfactory/model/weights/phantom/projection.safetensors
	$(BIN)/synthfactory privacy fit out/projection/bank.parquet -o synthfactory/model/weights/phantom/projection.safetensors \
		--provenance "invented tissue of synthfactory's phantom, cohort train: no person's data"

# Quality of each solver against network calls, on the built-in model: written beside it, where `steps: auto` reads it.
solver-table: $(VENV)/.run
	test -f out/solvers/bank.parquet || \
		$(BIN)/synthfactory phantom bank out/solvers/bank.parquet --cohort heldout --per-class 420
	$(BIN)/synthfactory calibrate specs/solvers.yaml --tiles 100 --seeds 3 --steps 5 --steps 10 --steps 20 \
		-o synthfactory/model/weights/phantom/calibration.json

# Build, fine-tune on what was built, build with the export, and the figures of both models side by side.
loop: $(VENV)/.run
	$(BIN)/synthfactory build specs/loop.yaml
	$(BIN)/synthfactory-train run train/configs/loop.yaml --run out/loop/run --cache out/loop/cache
	test out/loop/model/config.json -nt out/loop/run/checkpoints || \
		$(BIN)/synthfactory-train export out/loop/run out/loop/model --id phantom-loop
	$(BIN)/synthfactory build specs/loop-next.yaml
	$(BIN)/synthfactory verify out/loop/next
	$(BIN)/synthfactory-train compare phantom out/loop/model --cache out/loop/judge --per-class 24

clean:
	rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache
