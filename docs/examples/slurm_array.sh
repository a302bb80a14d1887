#!/bin/bash
# A batch as an array of SLURM jobs: each takes its share of the runs, one GPU each.
#
#   sbatch slurm_array.sh gpu_grid.toml
#
# All jobs see the same folder. Submitted again, the array runs what is left; the job that ends
# last joins the results. `--array=0-15` makes 16 jobs, and `%4` has four at a time.

#SBATCH --job-name=isogloss
#SBATCH --array=0-15%4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --output=isogloss-%A-%a.out

set -euo pipefail

grid=${1:?give the grid, as: sbatch slurm_array.sh gpu_grid.toml}

export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
# Compute nodes often reach no hub: download the models beforehand, on a login node.
export HF_HUB_OFFLINE=1

exec isogloss batch "$grid" --only "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
