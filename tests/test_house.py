"""Rules of this codebase that a machine can check. The linter and mypy check the rest (`make check`)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("serve_app", "chaos", "loadtest", "models", "bench", "monitoring")
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

VLLM_IMPORTERS = {
    "serve_app/ingress/api.py": "vLLM's API app",
    "serve_app/ingress/engine_client.py": "vLLM's AsyncLLM over our dispatcher",
    "serve_app/ingress/output_queue.py": "vLLM's queue of a request's outputs, which sends what repeats",
    "serve_app/ingress/vllm_*": "vLLM's errors and limits, as ours",
    "serve_app/ingress/media.py": "vLLM's image fetching, with refusals instead of failures",
    "serve_app/ingress/seen_images.py": "vLLM's decoded image, with pixels on demand",
    "serve_app/ingress/responses_api.py": "vLLM's Responses API, with OpenAI's end of a stream",
    "serve_app/ingress/grammars/*": "vLLM's check of grammars, and its back ends, with which each is tried",
    "serve_app/config/vllm_*": "vLLM's parser of its flags, and its version",
    "serve_app/engine/*": "vLLM's engine",
    "serve_app/vllm_patches/*": "changes to vLLM",
    "models/*": "the demo model's checks",
    "bench/*": "vLLM's own benchmark client, as a subprocess",
}
"""The modules that may import vLLM, and why. A new version then breaks few files, which
`vllm_patches/vllm_api_check.py` names."""

RAY_IMPORTERS = {
    "serve_app/app.py",
    "serve_app/router/serve_transport.py",
    "serve_app/router/node_drain.py",
    "serve_app/ingress/gauges.py",
    "serve_app/ingress/key_metrics.py",
    "serve_app/ingress/metrics.py",
    "serve_app/ingress/peers.py",
    "serve_app/ingress/serve_watch.py",
    "serve_app/ingress/rate_limits/deployment.py",
    "serve_app/ingress/canary/deployment.py",
    "serve_app/ingress/canary/gauges.py",
    "serve_app/config/room.py",
    "serve_app/canary.py",
    "serve_app/config/hardware.py",
    "serve_app/config/machine.py",
    "serve_app/config/placement.py",
    "serve_app/config/replicas.py",
    "serve_app/engine/autoscaling_config.py",
    "serve_app/engine/fake_metrics.py",
    "serve_app/engine/key_costs.py",
    "serve_app/engine/metrics.py",
    "serve_app/engine/node_prefetch.py",
    "serve_app/engine/start_board.py",
    "serve_app/engine/gang.py",
    "serve_app/engine/scale_in.py",
    "serve_app/scaling/journal.py",
    "serve_app/scaling/scaling_metrics.py",
    "serve_app/cli/*",
    "chaos/ray_agent.py",
    "bench/*",
}
"""The modules that may import Ray. Code that decides does not."""

PURE = (
    *("protocol/errors", "protocol/messages"),
    *("router/admission", "router/fleet_state", "protocol/poison", "router/routing"),
    *("engine/autoscaling", "engine/zero_scaling", "ingress/autoscaling", "engine/session_tokens"),
    *("ingress/content_encoding", "ingress/cors", "ingress/error_format", "ingress/routes"),
    *("observability/explain", "observability/phases", "observability/records"),
    *("observability/spans", "observability/usage"),
    *("simulate/engine_model", "simulate/replica_model", "simulate/fleet_model"),
    *("simulate/policies", "simulate/compare", "simulate/results", "simulate/trace"),
    *("ingress/sessions", "ingress/validation_errors"),
    *("config/pools", "config/fleet", "ingress/canary/samples", "ingress/canary/verdict"),
    *(
        "scaling/facts",
        "scaling/forecast",
        "scaling/memory",
        "scaling/policy",
        "scaling/reasons",
        "scaling/reports",
        "scaling/schedule",
    ),
    *("ingress/rate_limits/headers", "ingress/rate_limits/leases", "ingress/rate_limits/window"),
)
"""Modules that only compute: they import neither asyncio nor anything with connections."""

FLOORS = (
    ("protocol", "scaling"),
    ("config",),
    ("vllm_patches",),
    ("router", "engine"),
    ("observability",),
    ("ingress",),
    ("cli",),
    ("rehearse", "simulate"),
    ("app",),
    ("canary",),
    ("__main__",),
)
"""The folders of `serve_app`, lowest first. One imports from lower floors only; `protocol` is what two others share."""

LOADTEST_FLOORS = (
    ("errors",),
    ("http", "data", "mock"),
    ("api",),
    ("load", "fleet"),
    ("metrics",),
    ("report",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""The same of `loadtest`."""

LONG_FILE, LONG_FUNCTION = 300, 40
"""Past these a file or function is split, or justified by name here."""

JUSTIFIED_FUNCTIONS = {
    "models/training/model/dimensions.py:hub_config": "the checkpoint's config.json, field by field",
}

JUSTIFIED_FILES = {
    "serve_app/vllm_patches/vllm_api_check.py": "one walk over the syntax of our modules",
    "serve_app/app.py": "wires everything, in one place",
    "serve_app/protocol/messages.py": "every message between an ingress and a replica",
    "serve_app/protocol/errors.py": "one tree: every error, its status, and its words",
    "serve_app/engine/vllm.py": "one class: everything between a request and its deltas",
    "serve_app/router/replica_pool.py": "one class: connections are found, followed and watched over one state",
    "serve_app/router/request_context.py": "one record: what the path of a request writes, and its log line reads",
    "serve_app/router/dispatcher.py": "one class: requests, attempts and replicas share their state",
    "serve_app/engine/fair_queue.py": "one algorithm: the order, and the accounts that it goes by",
    "serve_app/engine/replica.py": "one class: an engine, its ingress connections, and its attempts",
    "serve_app/ingress/middleware.py": "one request's cycle, in its order",
    "monitoring/contents.py": "five dashboards, panel by panel",
}


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def importers_of(package: str, files: list[Path]) -> set[str]:
    found = set()
    for file in files:
        names = imported(ast.parse(file.read_text()))
        if any(name == package or name.startswith(package + ".") for name in names):
            found.add(relative(file))
    return found


def allowed(name: str, patterns: set[str] | dict[str, str]) -> bool:
    return any(
        Path(name).match(pattern) or (pattern.endswith("/*") and name.startswith(pattern[:-1])) for pattern in patterns
    )


def test_only_the_named_modules_import_vllm() -> None:
    strangers = {name for name in importers_of("vllm", SOURCES) if not allowed(name, VLLM_IMPORTERS)}
    assert not strangers


def test_only_the_adapters_import_ray() -> None:
    strangers = {name for name in importers_of("ray", SOURCES) if not allowed(name, RAY_IMPORTERS)}
    assert not strangers


@pytest.mark.parametrize(("package", "floors"), [("serve_app", FLOORS), ("loadtest", LOADTEST_FLOORS)])
def test_folders_import_from_below_only(package: str, floors: tuple[tuple[str, ...], ...]) -> None:
    floor_of = {folder: floor for floor, folders in enumerate(floors) for folder in folders}
    upward, seen = [], set()
    for file in SOURCES:
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[0] != package or parts[1] == "__init__":
            continue
        seen.add(parts[1])
        for name in imported(ast.parse(file.read_text())):
            other = name.split(".")[1] if name.startswith(f"{package}.") else parts[1]
            tools = set(PACKAGES) - {package} - ({"loadtest"} if parts[1] == "rehearse" else set())
            if (other != parts[1] and floor_of[other] >= floor_of[parts[1]]) or name.split(".")[0] in tools:
                upward.append(f"{relative(file)}: {name}")
    assert seen == set(floor_of), "each folder has a floor"
    assert not upward


@pytest.mark.parametrize("patterns", [VLLM_IMPORTERS, RAY_IMPORTERS, JUSTIFIED_FILES], ids=["vllm", "ray", "files"])
def test_exceptions_name_real_files(patterns: set[str] | dict[str, str]) -> None:
    names = [relative(file) for file in SOURCES]
    assert not [pattern for pattern in patterns if not any(allowed(name, {pattern}) for name in names)]


def test_the_makefile_names_real_tests() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    named = re.findall(r"^OVER_GPU_BUILD := (\S+) \$\(addprefix (\S+?),(.*)\)$", text, re.MULTILINE)
    assert named
    folder, prefix, names = named[0]
    assert not [name for name in (folder, *(prefix + name for name in names.split())) if not (ROOT / name).exists()]


@pytest.mark.parametrize("package", ["ray", "vllm", "torch", "transformers"])
def test_the_load_test_runs_without(package: str) -> None:
    assert not {name for name in importers_of(package, SOURCES) if name.startswith("loadtest/")}


def test_the_reader_of_serves_api_is_light() -> None:
    """Tools beside the service use it without Ray and vLLM."""
    names = set(imported(ast.parse((ROOT / "serve_app" / "cli" / "serve_api.py").read_text())))
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"msgspec"}


@pytest.mark.parametrize("name", PURE)
def test_decisions_are_pure(name: str) -> None:
    names = set(imported(ast.parse((ROOT / "serve_app" / f"{name}.py").read_text())))
    assert not names & {"asyncio", "ray", "vllm", "httpx", "threading", "time", "random"}


def test_nothing_is_global_mocked_or_slept_for() -> None:
    guilty = []
    for file in [*SOURCES, *TESTS]:
        tree = ast.parse(file.read_text())
        guilty += [f"{relative(file)}:{node.lineno}: global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
        if any(name.startswith("unittest.mock") or name == "mock" for name in imported(tree)):
            guilty.append(f"{relative(file)}: mocks")
        if file in TESTS:
            guilty += [f"{relative(file)}:{line}: sleeps" for line in fixed_sleeps(tree)]
    assert not guilty


def fixed_sleeps(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"):
            continue
        if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value:
            yield node.lineno


def test_lint_exceptions_say_why() -> None:
    unsaid = []
    for file in SOURCES:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if re.search(r"#\s*(noqa|type:\s*ignore)", line) and not re.search(
                r"#\s*(noqa: [A-Z0-9, ]+|type: ignore\[[a-z-]+(, [a-z-]+)*\])\s+#\s*\S+", line
            ):
                unsaid.append(f"{relative(file)}:{number}")
    assert not unsaid


def test_files_and_functions_stay_small() -> None:
    large = []
    for file in SOURCES:
        text = file.read_text()
        lines = len(text.splitlines())
        if lines > LONG_FILE and relative(file) not in JUSTIFIED_FILES:
            large.append(f"{relative(file)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                body_starts = (
                    node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.body[0].lineno
                )
                named = f"{relative(file)}:{node.name}" in JUSTIFIED_FUNCTIONS
                if node.end_lineno - body_starts > LONG_FUNCTION and not named:
                    large.append(
                        f"{relative(file)}:{node.lineno}: {node.name} is {node.end_lineno - body_starts} lines"
                    )
    assert not large


def test_every_module_opens_with_its_rule() -> None:
    assert not [
        relative(file)
        for file in SOURCES
        if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))
    ]


def test_no_path_of_a_machine_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    guilty = []
    for name in tracked:
        file = ROOT / name
        if (
            file.is_file()
            and file.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".json", ""}
            and name != "tests/test_house.py"
        ):
            text = file.read_text(errors="ignore")
            guilty += [name] if re.search(r"(?<![\w.])/(work|root|home/\w+)/", text) else []
    assert not guilty


def test_no_replica_starts_a_process_from_its_event_loop() -> None:
    """Serve runs replicas on uvloop, which forks; a fork beside gRPC's threads may never end, and the loop waits."""
    of_replicas = [file for file in SOURCES if relative(file).startswith("serve_app/")]
    of_replicas = [file for file in of_replicas if relative(file).split("/")[1] not in {"cli", "rehearse"}]
    assert of_replicas
    assert not [relative(file) for file in of_replicas if "create_subprocess" in file.read_text()]
