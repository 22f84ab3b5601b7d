"""What a person reads once the endpoint answers: where it is, and lines to paste."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


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


def text(endpoint: Endpoint, dashboard: str | None) -> str:
    """The whole message. Lines that are to be pasted stand alone."""
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
