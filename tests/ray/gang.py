"""`python gang.py ADDRESS CONFIG`: start one engine replica with this configuration, a JSON object, as an application
of its own. Prints where its bundles are and where its actor is, as JSON."""

from __future__ import annotations

import json
import sys

import ray
from ray import serve
from ray.util import placement_group_table

from serve_app.app import _engine_deployment
from serve_app.config.profile import load_config


def main() -> None:
    ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
    before = set(placement_group_table())
    serve.run(_engine_deployment(load_config(json.loads(sys.argv[2]))), name="gang", route_prefix=None)
    (group,) = (table for name, table in placement_group_table().items() if name not in before)
    address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    nodes = {int(index): address[node] for index, node in group["bundles_to_node_id"].items()}
    found = {
        "state": group["state"],
        "strategy": group["strategy"],
        "nodes": [nodes[index] for index in sorted(nodes)],
        "bundles": [group["bundles"][index] for index in sorted(nodes)],
    }
    serve.delete("gang")
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
