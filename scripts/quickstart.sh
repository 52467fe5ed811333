#!/usr/bin/env bash
# A fresh machine to a first result: makes the environment, then runs the whole flow on a corpus that needs no download.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
fastmix demo --dir "${FASTMIX_DEMO_DIR:-fastmix-demo}" "$@"
echo
echo "next: source $venv/bin/activate; fastmix init YOUR_DATA_FOLDER"
