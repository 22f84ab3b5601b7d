"""The files of deploy/, as the tests here and in tests/unit/test_deploy_files.py read them."""

from __future__ import annotations

from typing import Any

import yaml

from serve_app.config.profile import ROOT

DEPLOY = ROOT / "deploy"


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "kuberay" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def cluster(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifest(name)["spec"]
    inner: dict[str, Any] = spec.get("rayClusterConfig", spec)
    return inner
