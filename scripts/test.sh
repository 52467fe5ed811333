#!/usr/bin/env bash
# All tests, in an environment that is made if missing. Arguments go to pytest; FASTMIX_CORPUS adds the tests on real text.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python -m pytest --numprocesses "${FASTMIX_TEST_PROCESSES:-$(nproc)}" --dist worksteal "$@"
