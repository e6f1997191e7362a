#!/usr/bin/env bash
# Creates or reuses the project's virtual environment. Meant to be sourced.
#
#   MMCAKD_STACK   OpenMMLab's packages: classic (default) or onedl, their continuation
#   MMCAKD_VENV    where it is (default: .venv in the repository); -onedl is added for onedl
#   MMCAKD_PYTHON  the Python that makes it (default: python3.11, python3.12 or python3)
#
# Which package index is used, and so whether torch comes with CUDA, is up to
# pip's own configuration. Sets PYTHON, the environment's interpreter.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STACK=${MMCAKD_STACK:-classic}
# The two write the same folders: never into one environment.
VENV=${MMCAKD_VENV:-$REPO/.venv}$([ "$STACK" = classic ] || echo "-$STACK")
PYTHON=$VENV/bin/python

setup_env_fail() {
    echo "setup_env: $*" >&2
    return 1
}

# The pins need a Python from 3.11 (scipy, networkx) to 3.12 (numpy 1).
setup_env_usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

setup_env_base_python() {
    local candidate
    for candidate in ${MMCAKD_PYTHON:-python3.11 python3.12 python3}; do
        if setup_env_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    setup_env_fail "Python 3.11 or 3.12 is needed, and none of these is one:" \
        "${MMCAKD_PYTHON:-python3.11, python3.12, python3}." \
        "Install one, or name one in MMCAKD_PYTHON."
}

setup_env_create() {
    local base
    if [ -e "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
        setup_env_fail "$VENV exists and is no virtual environment; choose another MMCAKD_VENV."
        return 1
    fi
    base=$(setup_env_base_python) || return 1
    "$base" -c 'import ensurepip, venv' 2>/dev/null || {
        setup_env_fail "$base has no venv module; install it (Debian: apt-get install python3-venv)."
        return 1
    }
    echo "setup_env: creating $VENV with $("$base" --version)"
    "$base" -m venv --clear "$VENV"
}

# A half-made environment is mended or made anew; a working one of another
# Python is somebody's, and stays.
setup_env_interpreter() {
    if ! "$PYTHON" -c '' 2>/dev/null; then
        setup_env_create
    elif ! setup_env_usable "$PYTHON"; then
        setup_env_fail "$VENV has $("$PYTHON" --version), and 3.11 or 3.12 is needed;" \
            "remove it or choose another MMCAKD_VENV."
    elif ! "$PYTHON" -c 'import pip' 2>/dev/null; then
        "$PYTHON" -m ensurepip
    fi
}

# What one stack needs in another version than constraints.txt has stands in a
# file of its own: the first pin of a package counts.
setup_env_pins() {
    local own=$REPO/requirements/constraints-$STACK.txt
    [ -f "$own" ] || own=/dev/null
    awk -F'==' '!seen[$1]++' "$own" "$REPO/requirements/constraints.txt"
}

setup_env_stamp() {
    {
        echo "$REPO"
        "$PYTHON" --version
        setup_env_pins
        cat "$REPO"/requirements/{"$STACK",lite,optional,runtime,huggingface,tests}.txt \
            "$REPO/setup.py" "$REPO/pyproject.toml"
    } | "$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

setup_env_complete() {
    "$PYTHON" - <<'PY'
import sys
from importlib.util import find_spec
needed = 'torch torchvision mmcv mmengine mmpretrain mmrazor timm pytest xdist mmcakd'
sys.exit(not all(find_spec(name) for name in needed.split()))
PY
}

setup_env_has_full_mmcv() {
    "$PYTHON" -c 'from importlib.metadata import version; version("mmcv")' 2>/dev/null
}

setup_env_install() {
    local pip=("$PYTHON" -m pip --disable-pip-version-check --no-input install --quiet --quiet)
    local pins=(-c "$VENV/mmcakd-constraints.txt") files=() name
    for name in runtime "$STACK" optional tests; do
        files+=(-r "$REPO/requirements/$name.txt")
    done
    # mmcv-lite would overwrite files of the full mmcv, which setup_downstream.sh installs.
    [ "$STACK" != classic ] || setup_env_has_full_mmcv || files+=(-r "$REPO/requirements/lite.txt")
    setup_env_pins >"$VENV/mmcakd-constraints.txt"
    # torch alone and first: what else asks for torch must find the pinned one.
    "${pip[@]}" "${pins[@]}" torch setuptools &&
        "${pip[@]}" "${pins[@]}" "${files[@]}" &&
        "${pip[@]}" --no-deps --no-build-isolation --editable "$REPO"
}

setup_env() {
    local stamp started=$SECONDS
    if [ "$STACK" != classic ] && [ "$STACK" != onedl ]; then
        setup_env_fail "the stack is classic or onedl, not $STACK."
        return 1
    fi
    setup_env_interpreter || return 1
    stamp=$(setup_env_stamp) || return 1
    if [ "$stamp" = "$(cat "$VENV/.mmcakd-stamp" 2>/dev/null)" ] && setup_env_complete; then
        return
    fi
    echo "setup_env: installing the pinned requirements into $VENV"
    rm -f "$VENV/.mmcakd-stamp"
    if ! setup_env_install || ! setup_env_complete; then
        setup_env_fail "the installation did not finish; run it again when the cause above is mended."
        return 1
    fi
    echo "$stamp" >"$VENV/.mmcakd-stamp"
    echo "setup_env: done in $((SECONDS - started)) s"
}

setup_env || return 1 2>/dev/null || exit 1
