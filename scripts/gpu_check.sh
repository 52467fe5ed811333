#!/usr/bin/env bash
# What fastmix does on a GPU, as one Markdown table: exactness of scores, every ZeRO stage, the cost of scoring, proxies side by side,
# the demo. Downloads nothing and needs no installed fastmix, only its dependencies.
#   bash scripts/gpu_check.sh [--minutes 8] [--logs DIR]
#   bash scripts/gpu_check.sh --cpu       the same at tiny size without a GPU, as with FASTMIX_GPU_CHECK=cpu
# Exit code: 0 all as wanted, 1 something is not, 77 there is no GPU. PYTHON names the interpreter (default: .venv's, or python3).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${FASTMIX_VENV:-$root/.venv}/bin/python"
[ -x "$python" ] || python=python3
export PYTHONPATH="$root:$root/scripts/bench:$root/tests/train${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$python}" "$root/scripts/bench/gpu/check.py" "$@"
