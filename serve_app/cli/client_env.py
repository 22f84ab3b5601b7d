"""What each coding agent or library needs to talk to the endpoint: exports for a shell, or a configuration file.

`tests/agents` runs the real programs with exactly this text. `docs/clients.md` shows what to do with it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serve_app.cli.banner import Endpoint

MAX_OUTPUT_TOKENS = 16_384
"""The longest answer that agents ask for. vLLM refuses a prompt that leaves less room than the answer may take."""
API_TIMEOUT_MS = 3_600_000
"""Claude Code's own ten minutes are shorter than a long answer under load (`replicas.longest_stream_s`)."""


@dataclass(frozen=True)
class ClientSetup:
    """What to give a client. `place` says what to do with `text`; it is for a person and no part of the text."""

    text: str
    place: str


@dataclass(frozen=True)
class Target:
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
    setup = CLIENTS[client](Target(url.rstrip("/"), endpoint.model, key or endpoint.key(), endpoint.context_tokens))
    if endpoint.needs_key and key is None:
        return ClientSetup(setup.text, f"{setup.place} The endpoint asks for a key: add --key YOUR-KEY.")
    return setup


def _claude(target: Target) -> ClientSetup:
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


def _codex(target: Target) -> ClientSetup:
    text = f"""model = {json.dumps(target.model)}
model_provider = "step"
model_context_window = {target.prompt_tokens}

[model_providers.step]
name = "Step"
base_url = {json.dumps(target.url + "/v1")}
wire_api = "responses"
http_headers = {{ Authorization = {json.dumps("Bearer " + target.key)} }}"""
    return ClientSetup(text, "Put this into ~/.codex/config.toml.")


def _opencode(target: Target) -> ClientSetup:
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


def _aider(target: Target) -> ClientSetup:
    return _exports(
        {
            **_openai_names(target, base="OPENAI_API_BASE"),
            "AIDER_MODEL": f"openai/{target.model}",
            "AIDER_SHOW_MODEL_WARNINGS": "false",  # the model is in no list of its own
            "AIDER_ANALYTICS": "false",
            "AIDER_CHECK_UPDATE": "false",
        }
    )


def _mini_swe_agent(target: Target) -> ClientSetup:
    return _exports(
        {
            **_openai_names(target, base="OPENAI_API_BASE"),
            "MSWEA_MODEL_NAME": f"openai/{target.model}",
            "MSWEA_COST_TRACKING": "ignore_errors",  # there is no price for the model
            "MSWEA_CONFIGURED": "true",
        }
    )


def _openai(target: Target) -> ClientSetup:
    return _exports(_openai_names(target, base="OPENAI_BASE_URL"))


def _litellm(target: Target) -> ClientSetup:
    return _exports(_openai_names(target, base="OPENAI_API_BASE"))


def _anthropic(target: Target) -> ClientSetup:
    return _exports({"ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_API_KEY": target.key})


def _langchain(target: Target) -> ClientSetup:
    names = {**_openai_names(target, base="OPENAI_BASE_URL"), "OPENAI_API_BASE": f"{target.url}/v1"}
    return _exports({**names, "ANTHROPIC_BASE_URL": target.url, "ANTHROPIC_API_KEY": target.key})


def _openai_names(target: Target, base: str) -> dict[str, str]:
    return {base: f"{target.url}/v1", "OPENAI_API_KEY": target.key}


def _exports(names: Mapping[str, str]) -> ClientSetup:
    lines = (f"export {name}={shlex.quote(value)}" for name, value in names.items())
    return ClientSetup("\n".join(lines), "For a shell: eval it, or paste it into its profile.")


CLIENTS: Mapping[str, Callable[[Target], ClientSetup]] = {
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
