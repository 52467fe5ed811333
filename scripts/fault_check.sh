#!/usr/bin/env bash
# Searches whose ranks are killed at random moments, each run again until it is finished, beside ones that nobody disturbed: the mixture
# and the trajectory must be the same bytes on the same number of ranks, and alike to float tolerance on another. Some seeds fill the disk
# instead. Needs no GPU and downloads nothing; the part with a full disk mounts a small file system, which needs root.
#   bash scripts/fault_check.sh [--seeds 50] [--first 0] [--ranks 2]
# Exit code: 0 all ended where they would have, 1 one did not. PYTHON names the interpreter (default: .venv's, or python3).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${FASTMIX_VENV:-$root/.venv}/bin/python"
[ -x "$python" ] || python=python3
export PYTHONPATH="$root:$root/scripts/bench/gpu:$root/tests/train:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${PYTHON:-$python}" "$root/scripts/faults/check.py" "$@"
