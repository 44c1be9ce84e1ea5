# One command for each thing a user or a developer does: setup, weights, texts, build, gpu-build, gpu-count, gpu-check, demo, test,
# gpu-test, lint, eval, clean.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
ENV := . scripts/env.sh
RUN := scripts/ros-run
# Demo and tests talk to this machine only.
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
REPLAY_EVAL := inf_mllm replay --bag bags/eval --instructions bags/eval/instructions.yaml --model models/demo

.PHONY: all setup weights-smollm2 texts build gpu-build gpu-count gpu-pack gpu-check demo test test-core test-training test-scripts \
	test-ros gpu-test lint eval clean
all: build

setup: ## Debian packages, Rust and ROS 2 where they are missing
	scripts/setup.sh

weights-smollm2: setup ## SmolLM2-135M-Instruct (98 MB, Apache-2.0) into models/smollm2-135m, if it is not there
	$(ENV); scripts/weights-smollm2.sh

texts: setup ## the long public-domain texts of the evaluation into texts/, if they are not there
	scripts/texts.sh

build: setup ## messages, node and command line, into install/
	scripts/build.sh

gpu-build: setup ## the command line with CUDA, into target/cuda; needs no GPU; see docs/gpu.md
	scripts/gpu-build.sh

gpu-count: setup ## what a token asks of the driver, and how a build with CUDA starts without one; needs no GPU; not in `test`: 15 minutes, 3 GB
	tests/gpu/stand_in/make.sh target/stand-in
	export CUDA_HOME=$$PWD/target/stand-in CUDA_COMPUTE_CAP=90 CARGO_TARGET_DIR=$$PWD/target/stand-in; scripts/gpu-build.sh
	$(ENV); python -m pytest tests/gpu

gpu-pack: setup ## the executable with CUDA and llama.cpp beside it, into .gpu/, for a machine without cargo; see docs/gpu.md
	scripts/gpu/pack.sh $(GPU_PACK_ARGS)

gpu-check: gpu-pack ## numbers and speed of this machine's GPU beside other software, in nine minutes; options in GPU_CHECK_ARGS
	python3 scripts/gpu/run.py --out out/gpu $(GPU_CHECK_ARGS)

demo: build ## plays the demo bag into the node, shows what it answers and what it would without memory; options in DEMO_ARGS
	$(RUN) python scripts/demo $(DEMO_ARGS)

test: lint test-core test-training test-scripts test-ros ## everything

test-core: weights-smollm2 ## Rust tests; no ROS in them
	$(ENV); cargo test --release --locked

test-training: build ## what training/ makes: questions of bags/demo and bags/minutes, and streams of several cameras, against what is in view
	$(RUN) python -m pytest tests/training

test-scripts: build ## what scripts/ make of their results
	$(RUN) python -m pytest tests/scripts

test-ros: build ## the node process, driven by rclpy; beside it ROS 2 Kilted from wheels, installed if it is not there
	scripts/kilted.sh
	$(RUN) python -m pytest tests/ros

gpu-test: setup ## what `make test` leaves out of kernels/: address sanitizer, planted faults, nvcc for every GPU; needs no GPU
	scripts/kernels.sh
	scripts/kernels_nvcc.sh

lint: build ## formatting and lints of Rust (without and with ROS) and Python
	$(ENV); cargo fmt --check
	$(ENV); cargo clippy --release --locked --all-targets -- -D warnings
	$(ENV); bash build/ros-cargo clippy --release --locked --all-targets -- -D warnings
	$(ENV); CARGO_FEATURES=ros bash build/ros-cargo clippy --release --locked --bin inf_mllm_node -- -D warnings
	$(RUN) ruff check .
	$(RUN) ruff format --check .

eval: build ## accuracy of the demo model on unseen scenes, seeing and with black images
	mkdir -p out
	$(RUN) $(REPLAY_EVAL) --out out/eval.jsonl
	$(RUN) $(REPLAY_EVAL) --out out/eval-black.jsonl --black

clean: ## what was built; .ros, .kilted, .cuda and .nvcc stay
	rm -rf build install log target
