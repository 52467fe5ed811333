#!/usr/bin/env bash
# The same small search on two ranks of this machine, and on two hosts started by torchrun, by deepspeed with a hostfile, and by srun:
# each must move the mixture alike. Then what goes wrong on several nodes, and the line that each rank says of it.
# The hosts are network namespaces with names of their own, joined by a veth pair. Needs root, iproute2, openssh-server, pdsh and, for
# srun, slurm-wlm (Debian's names); what is missing is named and left out. Cleans up after itself.
#   sudo bash scripts/multi_node_check.sh [torchrun|deepspeed|srun|faults ...]
# Exit code: 0 all as wanted, 1 something is not, 77 namespaces are not allowed here. PYTHON names the interpreter (default: .venv's).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${FASTMIX_VENV:-$root/.venv}/bin/python"
[ -x "$python" ] || python=python3
export PYTHONPATH="$root:$root/scripts/multi_node:$root/tests/e2e${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-$python}" "$root/scripts/multi_node/check.py" "$@"
