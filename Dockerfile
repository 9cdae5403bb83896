# One GPU image for training, rollouts by vLLM, and the kernels' benchmarks. Not built yet where there is a GPU.
#   docker build -t hpt .
#   docker run --gpus all --ipc=host -v $PWD/runs:/hpt/runs -v ~/.cache/huggingface:/root/.cache/huggingface hpt train demo
# The CUDA toolkit of the base image is for DeepSpeed and flash-attn, which compile; torch brings its own libraries.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv python3-dev build-essential ninja-build git \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/hpt PATH=/opt/hpt/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv $VIRTUAL_ENV && pip install torch==2.13.0

WORKDIR /hpt
COPY . .
RUN pip install ./kernels '.[gpu,vllm,deepspeed,peft,wandb,trackio,tensorboard]' && hpt --version

ENTRYPOINT ["hpt"]
CMD ["--help"]
