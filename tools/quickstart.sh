#!/usr/bin/env bash
# The main job from nothing: bash tools/quickstart.sh [arguments of demo/quickstart.py]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
cd "$REPO"
exec "$PYTHON" demo/quickstart.py "$@"
