#!/usr/bin/env bash
# Train on several processes: dist_train.sh CONFIG PROCESSES [arguments of train.py]
# On several machines run it on each, with NNODES, NODE_RANK, MASTER_ADDR (and PORT).
# TOOL=downstream.py starts that tool instead of train.py, with its arguments.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi

TOOLS=$(cd "$(dirname "$0")" && pwd)
CONFIG=$1
PROCESSES=$2

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$TOOLS/${TOOL:-train.py}" "$CONFIG" --launcher pytorch "${@:3}"
