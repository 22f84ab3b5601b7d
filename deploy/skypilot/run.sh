#!/usr/bin/env bash
# What SkyPilot runs on each machine of a task: Ray over all of them, and the service on the first.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RAY_AUTH_MODE=token RAY_worker_niceness=0
unset RAY_ADDRESS # SkyPilot may have a Ray of its own
head=$(head -n 1 <<<"$SKYPILOT_NODE_IPS")
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then
    for _ in $(seq 60); do
        .venv/bin/ray health-check --address "$head:6379" && break
        sleep 5
    done
    exec .venv/bin/ray start --address="$head:6379" --block
fi
if [ "$SKYPILOT_NUM_NODES" != 1 ]; then
    .venv/bin/ray start --head --port=6379 --block & # ended with this script; `ray stop` would end SkyPilot's too
    count='import ray; ray.init("auto", log_to_driver=False); print(sum(node["Alive"] for node in ray.nodes()))'
    until [ "$(.venv/bin/python -c "$count" 2>/dev/null)" = "$SKYPILOT_NUM_NODES" ]; do sleep 5; done
fi
exec .venv/bin/python -m serve_app serve
