"""A Prometheus of a test's own, with the repository's configuration and rules, and faster clocks.

Windows, `for` and intervals are shortened so that a fault of seconds is as long as one of hours is to the rules that
are shipped; the expressions stay as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from serve_app.config.profile import ROOT
from tests.ray.cluster import free_ports, until

MONITORING = ROOT / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

FACTOR = 100
SHORTEST_S = 8
"""Ray exports, and Prometheus reads, once a second here: a rate needs a few samples."""

PATIENCE_S = 120
"""A quiet machine needs seconds."""

LIMITS = {"silence_seconds) > 30": "silence_seconds) > 2", 'le="5.0"': 'le="0.5"'}
"""Times that are compared with, and not windows."""

MISSING = "Debian's package `prometheus` (prometheus and promtool) is not installed: apt-get install prometheus"


def shortened(text: str) -> str:
    """A file of rules with shorter times."""

    def seconds(match: re.Match[str]) -> int:
        return int(match[2]) * SECONDS[match[3]]

    text = re.sub(r"(\[)(\d+)([smhd])\]", lambda found: f"[{max(SHORTEST_S, seconds(found) // FACTOR)}s]", text)
    text = re.sub(r"(offset )(\d+)([smhd])", lambda _: "offset 15s", text)
    text = re.sub(r"(for: )(\d+)([smhd])", lambda _: "for: 1s", text)
    text = text.replace("interval: 30s", "interval: 1s")
    for shipped, short in LIMITS.items():
        text = text.replace(shipped, short)
    return text


class Prometheus:
    """A running one at this address. Use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(
            base_url=url, trust_env=False, timeout=30
        )  # one: each new one reads certificates

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """The result of an instant query. Fails with Prometheus' words where it is not one."""
        answer = (await self._http.get("/api/v1/query", params={"query": expr})).json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def firing(self) -> set[str]:
        """The alerts that fire now."""
        found = await self.query('ALERTS{alertstate="firing"}')
        return {one["metric"]["alertname"] for one in found}

    async def until_fired(self, *names: str, deadline_s: float = PATIENCE_S) -> None:
        """Wait until each of these has fired, at the same time or one after the other."""
        seen: set[str] = set()

        async def all_fired() -> bool:
            seen.update(await self.firing())
            return seen.issuperset(names)

        try:
            await until(all_fired, deadline_s, f"{names} fire")
        except AssertionError as error:
            raise AssertionError(f"of {names} only {sorted(seen.intersection(names))} have fired") from error

    async def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            return (await self._http.get("/-/ready")).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def running(folder: Path, ray_folder: Path) -> Iterator[str]:
    """The address of a Prometheus that reads the endpoints of the Ray with this temporary folder. Its files are in
    `folder`."""
    (folder / "rules").mkdir(parents=True)
    for file in RULES:
        (folder / "rules" / file.name).write_text(shortened(file.read_text(encoding="utf-8")), encoding="utf-8")
    text = (MONITORING / "prometheus.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("/tmp/ray", str(ray_folder)))  # noqa: S108  # as it stands in the file
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "1s"
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (port,) = free_ports(1)
    program = shutil.which("prometheus")
    assert program is not None
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()
