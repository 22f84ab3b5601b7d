"""What `client-env` prints can be used as it stands: by a shell, a TOML reader, a JSON reader."""

from __future__ import annotations

import json
import shlex
import tomllib

import pytest

from serve_app.__main__ import main
from serve_app.cli.client_env import CLIENTS, Endpoint, setup_for

OPEN = Endpoint("0.0.0.0", 8000, "m", needs_key=False, context_tokens=100_000)
LOCKED = Endpoint("0.0.0.0", 8000, "m", needs_key=True)


def exports(text: str) -> dict[str, str]:
    """What a shell would make of it."""
    words = (shlex.split(line) for line in text.splitlines())
    return dict(pair.split("=", 1) for export, pair in words if export == "export")


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_learns_the_address_and_the_key(client: str) -> None:
    setup = setup_for(client, LOCKED, "https://there:1/", "it's me")
    assert "https://there:1" in setup.text
    assert "there:1/v1" in setup.text or "ANTHROPIC_BASE_URL" in setup.text
    assert any(spelled in setup.text for spelled in ("it's me", shlex.quote("it's me")))
    assert "--key" not in setup.instruction
    assert "--key YOUR-KEY" in setup_for(client, LOCKED, "u", None).instruction


def test_claude_code_gets_every_model_name_and_talks_to_nobody_else() -> None:
    names = exports(setup_for("claude", OPEN, "http://there:1", None).text)
    assert names["ANTHROPIC_BASE_URL"] == "http://there:1"
    assert names["ANTHROPIC_AUTH_TOKEN"] == "any"
    assert {names[name] for name in names if name.endswith("_MODEL")} == {"m"}
    assert sum(name.endswith("_MODEL") for name in names) == 4
    assert names["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"


def test_codex_gets_a_provider_that_speaks_responses() -> None:
    config = tomllib.loads(setup_for("codex", OPEN, "http://there:1", "k").text)
    provider = config["model_providers"][config["model_provider"]]
    assert provider["wire_api"] == "responses"
    assert provider["http_headers"] == {"Authorization": "Bearer k"}
    assert config["model_context_window"] < OPEN.context_tokens


def test_opencode_gets_a_model_with_its_limits() -> None:
    config = json.loads(setup_for("opencode", OPEN, "http://there:1", None).text)
    assert config["model"] == "step/m"
    assert config["provider"]["step"]["models"]["m"]["limit"]["context"] == 100_000


def test_only_the_text_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client-env", "codex", "--url", "http://there:1", "--key", "k"]) == 0
    said = capsys.readouterr()
    assert tomllib.loads(said.out)["model_providers"]["step"]["base_url"] == "http://there:1/v1"
    assert said.err == "# Put this into ~/.codex/config.toml.\n"
