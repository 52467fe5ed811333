# Sourced by the other scripts: makes a virtual environment with fastmix in it, unless a complete one is there, and activates it.
#   FASTMIX_VENV   where it lies (default: .venv in the checkout)
#   PYTHON         interpreter to build it from (default: python3; 3.11 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv="${FASTMIX_VENV:-$PWD/.venv}"
python="${PYTHON:-python3}"
stamp="$venv/.fastmix-installed"
wanted="$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1) $PWD"

if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$python" --version) is too old; install Python 3.11 or newer, or name one with PYTHON=..." >&2
    exit 2
  }
  echo "installing fastmix into $venv" >&2
  "$python" -m venv "$venv"
  # torch first and by its exact version: asked for as a dependency, pip may pick another build
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
  echo "$wanted" >"$stamp"
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"
