#!/usr/bin/env bash
# Test on several processes: dist_test.sh CONFIG CHECKPOINT PROCESSES [arguments of test.py]
# On several machines run it on each, with NNODES, NODE_RANK, MASTER_ADDR (and PORT).
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
fi

TOOLS=$(cd "$(dirname "$0")" && pwd)
CONFIG=$1
CHECKPOINT=$2
PROCESSES=$3

PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$TOOLS/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
