#!/usr/bin/env bash
# Lint and tests: bash tools/run_tests.sh [--stack onedl] [pytest arguments]
set -euo pipefail
if [ "${1:-}" = --stack ]; then
    export MMCAKD_STACK=${2:?--stack needs a name: classic or onedl}
    shift 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$REPO"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# A process for each core, each with one thread.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest -n auto --dist loadfile "$@"
