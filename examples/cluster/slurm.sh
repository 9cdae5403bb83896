#!/bin/bash
# HPT on several nodes of eight GPUs under Slurm; not run on a cluster yet.
#   sbatch examples/cluster/slurm.sh qwen2.5-math-7b-8x80gb output=/shared/runs/mine
# The run's folder and the environment must be on a disk that all nodes see. Submitted again with the same
# output, the job continues the run. Slurm's signal, three minutes before the end, makes the run save and stop.
#SBATCH --job-name=hpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
set -euo pipefail

recipe=$1
shift
output=runs/$recipe
for setting in "$@"; do
    case $setting in output=*) output=${setting#output=} ;; esac
done

# Every node keeps eight GPUs; ZeRO shards over all of them.
gpus=$((SLURM_NNODES * 8))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -f "$output/config.yaml" ]; then
    command=(train --resume "$output")
else
    command=(train "$recipe" "$@" engine=deepspeed hardware.gpus="$gpus")
fi

# torchrun passes the signal on; a step may take as long as its shutdown timeout.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --shutdown-timeout 170 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
    -m hpt "${command[@]}"
