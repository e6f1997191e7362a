#!/usr/bin/env bash
# Adds MMDetection and MMSegmentation to the environment: bash tools/setup_downstream.sh
#
# They need the full mmcv, and today's torch has no published wheel of it: the
# first run compiles its operators, which takes from 5 to 30 minutes, and keeps
# the wheel for the next environment.
#
#   MMCAKD_VENV           the environment, as in setup_env.sh
#   MMCAKD_WHEELS         where wheels are kept (default: ~/.cache/mmcakd/wheels)
#   MMCAKD_MMCV_OPS       operators for cpu or cuda (default: as torch was built)
#   TORCH_CUDA_ARCH_LIST  the GPUs they are for (default: those in this machine)
#   MAX_JOBS              compilers at a time, a GB of memory each (default: one a core)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

[ "$STACK" = classic ] || {
    echo "setup_downstream: detection and segmentation are set up on the classic stack, not on $STACK." >&2
    exit 1
}
REQUIREMENTS=$REPO/requirements
MMCV=$(grep '^mmcv==' "$REQUIREMENTS/constraints.txt")
STARTED=$SECONDS

say() {
    echo "setup_downstream: $*"
}

fail() {
    say "$*" >&2
    exit 1
}

pip() {
    "$PYTHON" -m pip --disable-pip-version-check --no-input "$@"
}

# Sets TORCH, CUDA, OPS and KEY: a wheel fits all that KEY names and nothing else.
choose_wheel() {
    local facts machine targets=cpu
    facts=$("$PYTHON" -c 'import platform, sys, sysconfig, torch
print(torch.__version__, torch.version.cuda or "none", sys.implementation.cache_tag,
      sysconfig.get_platform(), *platform.libc_ver())')
    read -r TORCH CUDA machine <<<"$facts"
    OPS=${MMCAKD_MMCV_OPS:-$([ "$CUDA" = none ] && echo cpu || echo cuda)}
    if [ "$OPS" = cuda ]; then
        [ "$CUDA" != none ] || fail "torch $TORCH is built without CUDA, so MMCAKD_MMCV_OPS can only be cpu."
        : "${TORCH_CUDA_ARCH_LIST:=$("$PYTHON" -c 'import torch
print(*sorted({"%d.%d" % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}))')}"
        [ -n "$TORCH_CUDA_ARCH_LIST" ] || fail "torch $TORCH is built for CUDA, but no GPU is visible here:" \
            "name those to build for, as in TORCH_CUDA_ARCH_LIST='8.0 9.0' (A100 and H100)," \
            "or have operators for the CPU alone with MMCAKD_MMCV_OPS=cpu."
        export TORCH_CUDA_ARCH_LIST
        targets="cuda-$CUDA $TORCH_CUDA_ARCH_LIST"
    elif [ "$OPS" != cpu ]; then
        fail "MMCAKD_MMCV_OPS is cpu or cuda, not $OPS."
    fi
    KEY="${MMCV/==/-} torch-$TORCH $targets $machine"
    KEY=${KEY//[^A-Za-z0-9.+-]/_}
}

installed() {
    "$PYTHON" - <<'PY'
import sys
from importlib.metadata import distributions
names = {each.metadata['Name'] for each in distributions()}
needed = set('mmcv mmdet mmsegmentation ftfy regex'.split())
sys.exit(not needed <= names or 'mmcv-lite' in names)
PY
}

# Not so a copy that was cut short.
sound() {
    [ -f "$1" ] && "$PYTHON" - "$1" 2>/dev/null <<'PY'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    operators = any(name.startswith('mmcv/_ext') for name in wheel.namelist())
    sys.exit(wheel.testzip() is not None or not operators)
PY
}

check_compilers() {
    local headers toolkit release cpu_alone='or have operators for the CPU alone with MMCAKD_MMCV_OPS=cpu.'
    command -v "${CXX:-c++}" >/dev/null ||
        fail "a C++ compiler is needed, and ${CXX:-c++} is not found;" \
            "install one (Debian: apt-get install g++), or name one in CXX."
    headers=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [ -f "$headers/Python.h" ] ||
        fail "Python's headers are needed, and $headers/Python.h is not found;" \
            "install them (Debian: apt-get install python3-dev)."
    [ "$OPS" = cuda ] || return 0
    toolkit=$("$PYTHON" -c 'from torch.utils.cpp_extension import CUDA_HOME; print(CUDA_HOME or "/usr/local/cuda")')
    release=$("$toolkit/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p') || true
    [ -n "$release" ] ||
        fail "torch $TORCH is built for CUDA $CUDA, and compiling for it needs that CUDA toolkit," \
            "but $toolkit/bin/nvcc does not run; install toolkit $CUDA and name its folder in CUDA_HOME," "$cpu_alone"
    [ "${release%%.*}" = "${CUDA%%.*}" ] ||
        fail "torch $TORCH is built for CUDA $CUDA, and the toolkit in $toolkit is of $release;" \
            "install toolkit $CUDA and name its folder in CUDA_HOME," "$cpu_alone"
}

build_wheel() {
    local cores
    check_compilers
    cores=$(getconf _NPROCESSORS_ONLN)
    say "building $MMCV with operators for $OPS against torch $TORCH, to be kept in $FOLDER; this takes minutes"
    pip install --quiet -c "$REQUIREMENTS/constraints.txt" ninja
    BUILD=$(mktemp -d "$FOLDER/build.XXXXXX")
    # No cache of pip's own: its key does not have the torch. No visible GPU: FORCE_CUDA alone decides.
    PATH=$(cd "$(dirname "$PYTHON")" && pwd):$PATH MMCV_WITH_OPS=1 FORCE_CUDA=$([ "$OPS" = cuda ] && echo 1 || echo 0) \
        CUDA_VISIBLE_DEVICES='' MAX_JOBS=${MAX_JOBS:-$cores} CFLAGS='-g0 -O1 -w' \
        pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --no-binary mmcv --wheel-dir "$BUILD" "$MMCV" ||
        fail "the build of $MMCV failed; its first error stands above. Fewer MAX_JOBS need less memory."
    sound "$BUILD"/*.whl || fail "the build made a wheel of $MMCV without operators."
    # At once, so that nobody sees half a wheel.
    mv "$BUILD"/*.whl "$FOLDER/"
}

find_wheel() {
    FOLDER=${MMCAKD_WHEELS:-$HOME/.cache/mmcakd/wheels}/$KEY
    mkdir -p "$FOLDER"
    trap 'rm -rf "${BUILD:-}"' EXIT
    # Who builds the same wheel at the same time waits, and then has it.
    exec 9>"$FOLDER/lock"
    ! command -v flock >/dev/null || flock 9
    if ! sound "$FOLDER"/*.whl; then
        rm -f "$FOLDER"/*.whl
        build_wheel
    fi
    exec 9>&-
}

install_downstream() {
    # Both, since they share their files: what is left of one spoils the other.
    pip uninstall --quiet --quiet --yes mmcv mmcv-lite &&
        pip install --quiet --no-deps "$FOLDER"/*.whl &&
        pip install --quiet -c "$REQUIREMENTS/constraints.txt" -r "$REQUIREMENTS/downstream.txt"
}

choose_wheel
STAMP=$(cat "$VENV/.mmcakd-stamp" "$REQUIREMENTS"/{full,downstream}.txt && echo "$KEY")
if [ "$STAMP" != "$(cat "$VENV/.mmcakd-downstream-stamp" 2>/dev/null)" ] || ! installed; then
    find_wheel
    say "installing MMDetection, MMSegmentation and $MMCV into $VENV"
    rm -f "$VENV/.mmcakd-downstream-stamp"
    install_downstream || fail "the installation did not finish; run it again when the cause above is mended."
    "$PYTHON" -W ignore "$REPO/tools/check_downstream.py" ||
        fail "what was installed does not work: see above. If it is mmcv's operators, remove $FOLDER and run again."
    echo "$STAMP" >"$VENV/.mmcakd-downstream-stamp"
    say "done in $((SECONDS - STARTED)) s"
fi
