#!/usr/bin/env bash
# Exports read by the trainers' own readers, each in an environment of its own, for their pins clash with ours and each other's:
#   bash scripts/test_exports.sh              all of them
#   bash scripts/test_exports.sh megatron     some
# An environment has the packages of scripts/export_environments/NAME.txt, and behind them those of ours, so that PyTorch is on disk once.
#   FASTMIX_EXPORT_ENVIRONMENTS   where they lie (default: .venv-exports in the checkout)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export FASTMIX_EXPORT_ENVIRONMENTS="${FASTMIX_EXPORT_ENVIRONMENTS:-$PWD/.venv-exports}"
names=("$@")
if [ "$#" = 0 ]; then
  for file in scripts/export_environments/*.txt; do names+=("$(basename "$file" .txt)"); done
fi
ours="$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
for name in "${names[@]}"; do
  requirements="scripts/export_environments/$name.txt"
  [ -f "$requirements" ] || { echo "error: there is no $requirements" >&2; exit 2; }
  folder="$FASTMIX_EXPORT_ENVIRONMENTS/$name"
  wanted="$(cat "$requirements" | sha256sum | cut -d' ' -f1) $ours"
  if [ "$(cat "$folder/.installed" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $name into $folder" >&2
    python -m venv --clear "$folder"
    # No dependencies: what a reader needs is listed, and all else is found in our environment.
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --requirement "$requirements"
    echo "$ours" >"$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz-behind.pth"
    echo "$wanted" >"$folder/.installed"
  fi
done
python -m pytest -q tests/exports -k "$(printf '%s or ' "${names[@]}" | sed 's/ or $//')"
