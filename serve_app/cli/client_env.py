"""How to reach the endpoint: the banner of a start, and what each coding agent or library needs.

`tests/agents` runs the real programs with exactly this text. `docs/clients.md` shows how to use it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_OUTPUT_TOKENS = 16_384
"""The longest answer that agents ask for. vLLM refuses a prompt that leaves less room than the answer may take."""
API_TIMEOUT_MS = 3_600_000
"""Claude Code's own ten minutes are shorter than a long answer under load (`replicas.longest_stream_s`)."""


@dataclass(frozen=True)
class Endpoint:
    """The running service, as its user sees it."""

    host: str
    port: int
    model: str
    needs_key: bool
    context_tokens: int = 262_144

    def url(self) -> str:
        """Its address from this machine."""
        return f"http://{'127.0.0.1' if self.host in {'0.0.0.0', '::'} else self.host}:{self.port}"

    def key(self) -> str:
        """What to write where a key is asked for."""
        return "YOUR-KEY" if self.needs_key else "any"


def tool(name: str) -> str:
    """How to call a program of this environment from here: it need not be on PATH."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def banner(endpoint: Endpoint, dashboard: str | None) -> str:
    """What is printed once the endpoint answers. Lines to paste stand alone."""
    url, model, key = endpoint.url(), endpoint.model, endpoint.key()
    reach = "every interface of this machine" if endpoint.host in {"0.0.0.0", "::"} else "this address only"
    auth = f" -H 'Authorization: Bearer {key}'" if endpoint.needs_key else ""
    hello = '[{"role": "user", "content": "Hello!"}]'
    body = f'{{"model": "{model}", "messages": {hello}}}'
    lines = f"""
Serving {model} at {url} ({reach}). Ctrl-C stops everything.

  curl
    curl {url}/v1/chat/completions{auth} -H 'Content-Type: application/json' -d '{body}'
  openai (Python)
    client = openai.OpenAI(base_url="{url}/v1", api_key="{key}")
    client.chat.completions.create(model="{model}", messages={hello})
  anthropic (Python)
    client = anthropic.Anthropic(base_url="{url}", api_key="{key}")
    client.messages.create(model="{model}", max_tokens=512, messages={hello})
  Claude Code
    eval "$({tool("python")} -m serve_app client-env claude)" && claude
  Codex, OpenCode, aider ...
    {tool("python")} -m serve_app client-env --help""".splitlines()
    if dashboard:
        lines += ["", f"  Ray dashboard  {dashboard}   (asks for the token of `{tool('ray')} get-auth-token`)"]
    return "\n".join([*lines, ""])


@dataclass(frozen=True)
class ClientSetup:
    """What to give a client. `instruction` says where `text` goes; it is for a person and no part of the text."""

    text: str
    instruction: str


@dataclass(frozen=True)
class ClientTarget:
    """The endpoint as a client sees it."""

    url: str
    model: str
    key: str
    context_tokens: int

    @property
    def output_tokens(self) -> int:
        """The longest answer that an agent should ask for: never most of a short context."""
        return min(MAX_OUTPUT_TOKENS, self.context_tokens // 4)

    @property
    def prompt_tokens(self) -> int:
        """What is left for the prompt."""
        return self.context_tokens - self.output_tokens


def setup_for(client: str, endpoint: Endpoint, url: str, key: str | None) -> ClientSetup:
    """What `client` (one of `CLIENTS`) needs."""
    setup = CLIENTS[client](
        ClientTarget(url.rstrip("/"), endpoint.model, key or endpoint.key(), endpoint.context_tokens)
    )
    if endpoint.needs_key and key is None:
        return ClientSetup(setup.text, f"{setup.instruction} The endpoint asks for a key: add --key YOUR-KEY.")
    return setup


def _claude(target: ClientTarget) -> ClientSetup:
    # A token, not ANTHROPIC_API_KEY: for a key, the program first asks whether it may use it.
    models = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("SONNET", "OPUS", "HAIKU")))
    return _exports(
        {
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_AUTH_TOKEN": target.key,
            **dict.fromkeys(models, target.model),
            "API_TIMEOUT_MS": str(API_TIMEOUT_MS),
            "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(target.output_tokens),
            # It takes 200,000 tokens for the context of a model that it does not know.
            "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(min(target.prompt_tokens, 200_000)),
            # No updates, reports or telemetry: nothing goes anywhere but to the endpoint.
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
    )


def _codex(target: ClientTarget) -> ClientSetup:
    text = f"""model = {json.dumps(target.model)}
model_provider = "step"
model_context_window = {target.prompt_tokens}

[model_providers.step]
name = "Step"
base_url = {json.dumps(target.url + "/v1")}
wire_api = "responses"
http_headers = {{ Authorization = {json.dumps("Bearer " + target.key)} }}"""
    return ClientSetup(text, "Put this into ~/.codex/config.toml.")


def _opencode(target: ClientTarget) -> ClientSetup:
    model = {
        "name": target.model,
        "attachment": True,
        "reasoning": True,
        "tool_call": True,
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "limit": {"context": target.context_tokens, "output": target.output_tokens},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Step",
        "options": {"baseURL": f"{target.url}/v1", "apiKey": target.key},
        "models": {target.model: model},
    }
    document = {
        "$schema": "https://opencode.ai/config.json",
        "model": f"step/{target.model}",
        "small_model": f"step/{target.model}",
        "autoupdate": False,
        "share": "disabled",
        "provider": {"step": provider},
    }
    return ClientSetup(
        json.dumps(document, indent=2), "Put this into opencode.json in the project, or into ~/.config/opencode/."
    )


def _aider(target: ClientTarget) -> ClientSetup:
    return _exports(
        {
            **_openai_names(target, base="OPENAI_API_BASE"),
            "AIDER_MODEL": f"openai/{target.model}",
            "AIDER_SHOW_MODEL_WARNINGS": "false",  # the model is in no list of its own
            "AIDER_ANALYTICS": "false",
            "AIDER_CHECK_UPDATE": "false",
        }
    )


def _mini_swe_agent(target: ClientTarget) -> ClientSetup:
    return _exports(
        {
            **_openai_names(target, base="OPENAI_API_BASE"),
            "MSWEA_MODEL_NAME": f"openai/{target.model}",
            "MSWEA_COST_TRACKING": "ignore_errors",  # there is no price for the model
            "MSWEA_CONFIGURED": "true",
        }
    )


def _openai(target: ClientTarget) -> ClientSetup:
    return _exports(_openai_names(target, base="OPENAI_BASE_URL"))


def _litellm(target: ClientTarget) -> ClientSetup:
    return _exports(_openai_names(target, base="OPENAI_API_BASE"))


def _anthropic(target: ClientTarget) -> ClientSetup:
    return _exports({"ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_API_KEY": target.key})


def _langchain(target: ClientTarget) -> ClientSetup:
    names = {**_openai_names(target, base="OPENAI_BASE_URL"), "OPENAI_API_BASE": f"{target.url}/v1"}
    return _exports({**names, "ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_API_KEY": target.key})


def _openai_names(target: ClientTarget, base: str) -> dict[str, str]:
    return {base: f"{target.url}/v1", "OPENAI_API_KEY": target.key}


def _exports(names: Mapping[str, str]) -> ClientSetup:
    lines = (f"export {name}={shlex.quote(value)}" for name, value in names.items())
    return ClientSetup("\n".join(lines), "For a shell: eval it, or paste it into its profile.")


CLIENTS: Mapping[str, Callable[[ClientTarget], ClientSetup]] = {
    "claude": _claude,
    "codex": _codex,
    "opencode": _opencode,
    "aider": _aider,
    "mini-swe-agent": _mini_swe_agent,
    "openai": _openai,
    "anthropic": _anthropic,
    "openai-agents": _openai,
    "claude-agent-sdk": _claude,
    "langchain": _langchain,
    "pydantic-ai": _langchain,
    "litellm": _litellm,
    "vercel-ai": _openai,
}
"""By the name of the program or library."""
