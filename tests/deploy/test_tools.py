"""The tools that deploy/ is written for read it: linters, schemas, parsers. `make test-deploy` installs them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from serve_app.config.profile import ROOT
from tests.deploy.manifests import DEPLOY, cluster, manifest

TOOLS = ROOT / "build" / "deploy-tools" / "bin"
KUBERAY = ("rayservice", "raycluster")
CRDS = os.environ.get("KUBERAY_CRDS", "")
SKYPILOT = """
import sys, sky
for file in sys.argv[1:]:
    task = sky.Task.from_yaml(file)
    [resources] = task.resources
    print(file, task.num_nodes, resources.cloud, resources.accelerators, resources.ports)
"""

pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="`make test-deploy` installs the tools")


def run(tool: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """What the tool printed; fails with it where the tool found something."""
    command = [str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, **(env or {})}
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("file", sorted((DEPLOY / "docker").iterdir()), ids=lambda path: path.name)
def test_hadolint_finds_nothing(file: Path) -> None:
    run("hadolint", file)


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    run("shellcheck", script)


@pytest.mark.parametrize("name", KUBERAY)
def test_kubernetes_takes_the_pods(name: str, tmp_path: Path) -> None:
    spec = cluster(name)
    for number, group in enumerate([spec["headGroupSpec"], *spec["workerGroupSpecs"]]):
        metadata = {"name": f"pod-{number}", **group["template"].get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": group["template"]["spec"]}
        file = tmp_path / f"pod-{number}.yaml"
        file.write_text(yaml.safe_dump(pod), encoding="utf-8")
        run("kubernetes-validate", "--strict", file)


def test_kubernetes_takes_the_claim() -> None:
    run("kubernetes-validate", "--strict", DEPLOY / "kuberay" / "cache.yaml")


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_fields_are_spelt_as_it_knows_them(name: str) -> None:
    schema = yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text(encoding="utf-8"))
    found = manifest(name)
    assert found["apiVersion"] == "ray.io/v1"
    kind = {"RayService": "service", "RayCluster": "cluster"}[found["kind"]]
    jsonschema.Draft202012Validator({**schema, "$ref": f"#/definitions/{kind}"}).validate(found["spec"])


def strict(schema: Any) -> Any:
    """A definition's schema, refusing fields that it does not name: Kubernetes would drop them without a word."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    if (
        "properties" in inner
        and inner.get("type") == "object"
        and not inner.get("x-kubernetes-preserve-unknown-fields")
    ):
        inner.setdefault("additionalProperties", False)
    return inner


def definitions(place: Path) -> Iterator[dict[str, Any]]:
    """Each definition in the file, or in the YAML files of the folder."""
    for file in sorted(place.glob("*.yaml")) if place.is_dir() else [place]:
        for document in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if document and document.get("kind") == "CustomResourceDefinition":
                yield document


@pytest.mark.skipif(not CRDS, reason="KUBERAY_CRDS names no folder of KubeRay's definitions")
@pytest.mark.parametrize("name", KUBERAY)
def test_kuberays_own_definitions_take_the_file(name: str) -> None:
    found = manifest(name)
    definition = next(item for item in definitions(Path(CRDS)) if item["spec"]["names"]["kind"] == found["kind"])
    version = next(item for item in definition["spec"]["versions"] if item["name"] == "v1")
    jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"])).validate(found)


def test_skypilot_takes_the_tasks(tmp_path: Path) -> None:
    files = sorted((DEPLOY / "skypilot").glob("*.yaml"))
    env = {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "RAY_AUTH_TOKEN": "secret"}
    read = run("python", "-c", SKYPILOT, *files, env=env).splitlines()
    assert len(read) == len(files) == 3
    assert all(" 1 Lambda " in line and "['8000']" in line for line in read)
