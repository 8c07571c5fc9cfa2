# `make help` lists the targets. `make clean` removes what they built in the checkout; VGG19's weights lie elsewhere.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-quick judge-selftest soak soak-decoders fuzz-decoder mutate lint bench bench-answer \
  bench-process bench-decode docker-test docs bench-overload bench-service bench-threads bench-peers bench-tensors bench-tracing bench-hostile bench-intervals bench-training wheel-newest lock clean

# Which build of ONNX Runtime: `gpu` if an NVIDIA driver answers. `make setup VARIANT=cpu` overrides it.
override VARIANT := $(or $(VARIANT),$(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu))
BIN := .venv/bin
STAMP := .venv/.installed-$(VARIANT)
# A virtual environment holds its own path: in a checkout that was moved or copied, it would run the code of the old
# place. It is made anew there.
override MOVED := $(if $(wildcard .venv/pyvenv.cfg),$(shell grep -qF " $(CURDIR)/.venv" .venv/pyvenv.cfg || echo yes))

help: ## List the targets
	@awk -F ' ?## ' '/^[a-z-]+:.*## / {sub(/:.*/, "", $$1); printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Install everything into .venv/ from the hashed locks (VARIANT=cpu|gpu, PYTHON=/path/to/python)

# Try each Python: pyenv leaves shims of inactive versions, and Debian packages ensurepip separately.
$(STAMP): pyproject.toml requirements/dev-$(VARIANT).txt $(if $(MOVED),moved)
	@if [ -n "$(MOVED)" ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $${PYTHON:-python3 python3.13 python3.12 python3.11}; do \
	    if "$$python" -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    version=$$("$${PYTHON:-python3}" --version 2>/dev/null || echo "no $${PYTHON:-python3}"); \
	    echo "Limelight needs Python 3.11, 3.12 or 3.13 with its venv module, and found $$version:" \
	      "install one (Debian: python3 and python3-venv; elsewhere: pyenv install 3.13)" \
	      "or name it: make setup PYTHON=/path/to/python3.13" >&2; \
	    exit 2; \
	  fi; \
	  if [ -n "$(MOVED)" ]; then rm -rf .venv; fi; \
	  "$$found" -m venv --clear .venv; \
	fi
	@echo "Installing Limelight ($(VARIANT)) into .venv: downloads about 1 GB the first time and takes some minutes."
	@rm -f .venv/.installed-*
	@# The two builds of ONNX Runtime install the same files: remove the other build first.
	@if $(BIN)/python -m pip show -qq onnxruntime$(if $(filter cpu,$(VARIANT)),-gpu); then \
	  $(BIN)/python -m pip uninstall -q -y onnxruntime onnxruntime-gpu; fi
	@$(BIN)/python -m pip install -q --require-hashes -r requirements/dev-$(VARIANT).txt
	@$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: moved
moved:

demo: setup ## Fetch weights, export a bundle, start a server, classify a clip, draw demo.png (CLIP=video.mp4)
	$(BIN)/limelight-model fetch-weights
	$(BIN)/limelight-model export --output bundle
	$(BIN)/limelight demo $${CLIP:+"$$CLIP"} --bundle bundle --overlay demo.png
	@echo "Next: make serve, then open the address that it prints in a browser and drop a video on the page."

serve: setup ## Serve bundle/ and the page on port 8000 (LIMELIGHT_* variables apply)
	$(BIN)/limelight serve --bundle bundle

# One process more than cores, because many tests wait for servers and browsers. More than four do not pay: each loads
# TensorFlow, and the longest file decides when the run ends.
override JOBS := $(or $(JOBS),$(shell expr $$(nproc) + 1))
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4

test: setup ## Run all tests, in up to four processes (ARGS="-k name" picks some, JOBS=0 runs them one by one)
	$(PYTEST) $(ARGS)

test-quick: setup ## Run the tests that are fast and need neither TensorFlow nor a browser: under two minutes
	$(PYTEST) --quick $(ARGS)

judge-selftest: setup ## Judge heads, folds and methods whose truth is known by construction (part of `make test`)
	$(BIN)/python -m pytest tests/model_export/judging/test_known_truth.py -v $(ARGS)

soak-decoders: setup ## Kill decoders for a minute, and try every variant of the odd files in LIMELIGHT_SHARED
	LIMELIGHT_SOAK_S=60 $(BIN)/python -m pytest tests/e2e/test_hostile.py --log-cli-level=WARNING $(ARGS)

bench-process: setup ## Measure the cost of one decoder process for each clip (ARGS="--rounds 50")
	$(BIN)/python benchmarks/bench_decoder_process.py $(ARGS)

bench-answer: setup ## Measure how long it takes to write an answer (ARGS="--rounds 1000")
	$(BIN)/python benchmarks/bench_answer.py $(ARGS)

bench-decode: setup .bench/venv ## Compare the decoder with OpenCV and decord (ARGS="--only Xvid --rounds 3")
	$(BIN)/python benchmarks/bench_decode.py $(ARGS)

# torchcodec is compared as well if it is installed by hand; its torch takes 2 GB.
.bench/venv: requirements/bench-decode.txt
	$(BIN)/python -m venv --clear $@
	$@/bin/python -m pip install -q --require-hashes -r $< || { rm -rf $@; exit 1; }
	@touch $@

bench-overload: setup ## Measure overload at four times the capacity, and slow uploads (ARGS="--rounds 1")
	$(BIN)/python benchmarks/bench_overload.py $(ARGS)

bench-intervals: setup ## Simulate the coverage of the intervals of an evaluation (ARGS="--experiments 200")
	$(BIN)/python benchmarks/bench_intervals.py $(ARGS)

bench-training: setup ## Measure the time of training a head (ARGS="--before ../earlier" compares with another checkout)
	$(BIN)/python benchmarks/bench_training.py $(ARGS)

bench-service: setup ## Measure the service's overhead and throughput (ARGS="--only tiny")
	$(BIN)/python benchmarks/bench_service.py $(ARGS)

bench-hostile: setup ## Measure what hostile clients cost a good one (ARGS="--image limelight:latest" for a container)
	$(BIN)/python benchmarks/bench_hostile.py $(ARGS)

bench-tracing: setup ## Measure what tracing adds to a clip (ARGS="--rounds 100")
	$(BIN)/python benchmarks/bench_tracing.py $(ARGS)

bench-threads: setup ## Compare numbers of threads and decoders (ARGS="--bundle bundle")
	$(BIN)/python benchmarks/bench_threads.py $(ARGS)

bench-tensors: setup ## Measure how reading tensors delays other requests (ARGS="--rounds 10")
	$(BIN)/python benchmarks/bench_tensors.py $(ARGS)

bench-peers: setup .bench/peers-venv ## Compare the service with LitServe and BentoML (ARGS="--rounds 1")
	$(BIN)/python benchmarks/bench_peers.py $(ARGS)

.bench/peers-venv: requirements/bench-peers.txt
	$(BIN)/python -m venv --clear $@
	$@/bin/python -m pip install -q --require-hashes -r $< || { rm -rf $@; exit 1; }
	@touch $@

soak: setup ## Look for leaks in half an hour of good and bad clips and lost clients (ARGS="--minutes 5")
	$(BIN)/python benchmarks/soak.py $(ARGS)

fuzz-decoder: setup ## Decode damaged clips for ten minutes (ARGS="--seconds 60")
	$(BIN)/python -m tests.fuzz_decoder $(ARGS)

mutate: setup ## Look for changes of the code that no test notices (ARGS="--modules service/isolation --sample 20 --seed 1")
	$(BIN)/python -m tests.mutate $(ARGS)

docker-test: setup ## Build the images and test the containers; needs a Docker engine (ARGS="-k gateway")
	$(BIN)/python -m pytest -m docker tests/docker $(ARGS)

wheel-newest: setup ## Install the wheel with today's releases and decode clips; may fail because of somebody else's release
	$(BIN)/python -m pytest tests/e2e/test_wheel.py -k "today" --newest-releases $(ARGS)

docs: setup ## Renew the table of settings in docs/operations.md
	$(BIN)/python docs/settings_table.py

lint: setup ## Check style, types, imports between rooms, and the deployment files (if their tools are installed)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	@if command -v promtool >/dev/null; then \
	  promtool check config deploy/prometheus/prometheus.yml && promtool test rules deploy/prometheus/tests/*.yml; \
	  else echo "Skipping Prometheus' rules: promtool is not installed (Debian: prometheus)"; fi
	@if docker compose version >/dev/null 2>&1; then \
	  for variant in alerts gpu tls tracing; do \
	    docker compose -f docker-compose.yml -f docker-compose.$$variant.yml --profile grafana --profile tracing config \
	      --quiet || exit 1; \
	  done; \
	  else echo "Skipping the Compose files: Docker Compose is not installed"; fi

bench: setup ## Measure bundle/ and the decoder; append the table to benchmarks/RESULTS.md (ARGS="--rounds 3")
	$(BIN)/python benchmarks/bench_inference.py $(ARGS)

# One resolution for all locks, so that the tested versions are served. The locks contain no registry address.
override UV := $(or $(UV),uv)
RESOLVE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
COMPILE = $(RESOLVE) pyproject.toml --fork-strategy fewest $(ARGS)
# What a stranger's pip may choose for the wheel: on each Python the newest versions that the bounds allow, or the lowest
# that have a wheel. tests/e2e/test_wheel.py installs both.
BOUNDS = $(RESOLVE) pyproject.toml --fork-strategy requires-python --upgrade --only-binary :all: --extra cpu --extra otel

lock: ## Renew requirements/*.txt with uv (ARGS=--upgrade for the newest versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: install it (pipx install uv) or set UV=/path/to/uv" >&2; exit 2; }
	@$(COMPILE) --extra cpu --extra otel --extra export --extra dev -o requirements/dev-cpu.txt
	@$(COMPILE) --extra gpu --extra otel --extra export --extra dev -o requirements/dev-gpu.txt
	@$(COMPILE) --extra cpu --extra otel -c requirements/dev-cpu.txt -o requirements/serve-cpu.txt
	@$(COMPILE) --extra gpu --extra otel -c requirements/dev-gpu.txt -o requirements/serve-gpu.txt
	@$(COMPILE) --extra cpu --extra export -c requirements/dev-cpu.txt -o requirements/export.txt
	@$(BOUNDS) -o requirements/wheel-newest.txt
	@$(BOUNDS) --resolution lowest-direct -o requirements/wheel-lowest.txt
	@printf '%s\n' opencv-python-headless decord | $(subst pyproject.toml,-,$(COMPILE)) -o requirements/bench-decode.txt
	@printf '%s\n' litserve bentoml onnxruntime av numpy | $(subst pyproject.toml,-,$(COMPILE)) -o requirements/bench-peers.txt
	@echo hatchling | $(subst pyproject.toml,-,$(COMPILE)) -c requirements/dev-cpu.txt -o requirements/build.txt

clean: ## Remove everything that make built (.venv, .bench, bundle, demo.png, caches); keep features/ and runs/
	rm -rf .venv .bench bundle build dist demo.png .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find service model_export tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
