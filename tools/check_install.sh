#!/usr/bin/env bash
# Runs every install line of the README as a stranger would, and then uses what
# was installed, outside the checkout: bash tools/check_install.sh [--unpinned]
#
# The lines are read from README.md. Those of one stack share an environment,
# which is made anew; it and a copy of the checkout lie in a temporary folder.
# torch and what goes with it are those of requirements/constraints.txt;
# with --unpinned they are today's, which can mean gigabytes of CUDA.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
PINNED=true
case "${1:-}" in
--unpinned) PINNED=false ;;
?*)
    echo "check_install: the only option is --unpinned, not $1" >&2
    exit 1
    ;;
esac

lines() {
    sed -n '/^## Install/,/^## Read more/s/^\(pip .*\)/\1/p' "$REPO/README.md" | sed 's/  *#.*//'
}

use() {
    (cd "$WORK" && "$1/bin/python" -W ignore - "$2") <<'PY'
import sys
import mmcakd, mmcakd.engine, mmcakd.models
from mmcakd.registry import MODELS
from mmcakd.stacks import find_stack
from mmengine.config import Config
assert find_stack() == sys.argv[1], find_stack()
with open('own.py', 'w') as config:
    config.write("_base_ = 'mmcakd::scalekd/swin-l_resnet50_in1k.py'")
cfg = Config.fromfile('own.py')
assert cfg.model.type == 'mmcakd.CrossArchDistill'
MODELS.build(cfg.model.architecture)
PY
}

# A copy: installing leaves files beside the source.
mkdir "$WORK/checkout"
(cd "$REPO" && git ls-files -z | xargs -0 cp --parents -t "$WORK/checkout")
(cd "$WORK/checkout" && git init -q && git add -A && git -c user.name=a -c user.email=a@b commit -qm copy)

count=0
while read -r -u 3 line; do
    case "$line" in
    *torch*) torch=$line && continue ;;
    *onedl*) stack=onedl ;;
    *) stack=classic ;;
    esac
    env=$WORK/$stack
    started=$SECONDS
    if [ ! -d "$env" ]; then
        "$PYTHON" -m venv "$env"
        ! $PINNED || STACK=$stack setup_env_pins >"$WORK/$stack.txt"
        todo=("$torch" "$line")
    else
        "$env/bin/python" -m pip uninstall --quiet --yes mmcakd
        todo=("$line")
    fi
    for each in "${todo[@]}"; do
        echo "check_install: $each"
        # The address of the repository is the copy's; pip wants a host in it.
        each=${each/git+https:\/\/*\"/git+file://localhost$WORK/checkout\"}
        (
            cd "$WORK/checkout"
            ! $PINNED || export PIP_CONSTRAINT=$WORK/$stack.txt
            PATH=$env/bin:$PATH PIP_QUIET=2 bash -euc "$each"
        )
    done
    use "$env" "$stack"
    echo "check_install: works, $((SECONDS - started)) s"
    count=$((count + 1))
done 3< <(lines)
[ "$count" -gt 0 ] || {
    echo 'check_install: README.md has no install lines' >&2
    exit 1
}
echo "check_install: $count lines work"
