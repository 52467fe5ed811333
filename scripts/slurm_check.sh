#!/usr/bin/env bash
# `fastmix launch --slurm` on a real SLURM: slurmctld and two nodes, each a slurmd in a network namespace of its own. The flow is queued;
# its search is signalled as before a time limit, then preempted, and must end with the mixture of an undisturbed one.
# Needs root, iproute2 and slurm-wlm (Debian's name). Cleans up after itself; five minutes.
#   sudo bash scripts/slurm_check.sh
# Exit code: 0 all as wanted, 1 something is not, 77 it cannot be tried here. PYTHON names the interpreter (default: .venv's, or python3).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${FASTMIX_VENV:-$root/.venv}/bin/python"
[ -x "$python" ] || python=python3
export PYTHONPATH="$root:$root/scripts/multi_node:$root/tests/e2e${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$python}" "$root/scripts/multi_node/slurm_flow.py" "$@"
