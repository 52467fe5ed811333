#!/usr/bin/env bash
# All tests, in an environment that is made if missing. Arguments go to pytest; FASTMIX_CORPUS adds the tests on real text.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
processes="${FASTMIX_TEST_PROCESSES:-$(nproc)}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # workers and ranks of the tests share the cores; nproc would heed it too
exec python -m pytest --numprocesses "$processes" --dist worksteal "$@"
