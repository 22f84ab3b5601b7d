"""Prompts from the user's own files: JSONL, ShareGPT and traces."""

from __future__ import annotations

import csv
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import numpy as np

from loadtest.data.prompt import DatasetSpec, Json, Prompt
from loadtest.data.text import TextSource, load_text
from loadtest.data.tokenizer import PromptTokenizer
from loadtest.errors import DataError, UsageError

OUTPUT_FIELDS = ("output_tokens", "output_len", "max_tokens", "max_completion_tokens")
TRACE_BLOCK = 512
"""Tokens per `hash_ids` entry of a Mooncake trace."""
TRACE_FIELDS = (
    ("timestamp", "at_s", "arrival_s"),
    ("input_length", "input_len", "prompt_tokens"),
    ("output_length", "output_len", "output_tokens"),
)
"""The names of a request's time and lengths: Mooncake's, short ones, and those of `python -m serve_app simulate`."""


def _read(file: str | None, flag: str = "--dataset-path") -> bytes:
    if not file:
        raise UsageError("this data set is read from a file", f"Name it with {flag}")
    try:
        return Path(file).read_bytes()
    except OSError as bad:
        raise DataError(f"cannot read {file!r} ({bad.strerror})", f"Check {flag}") from bad


def _rows(file: str | None, flag: str = "--dataset-path") -> Iterator[dict[str, Json]]:
    for number, line in enumerate(_read(file, flag).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError as bad:
            raise DataError(f"{file}, line {number}: {bad}", "Every line must be a JSON object") from bad
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number} is not a JSON object")
        yield row


def read_list(file: str | None, remedy: str) -> list[dict[str, Json]]:
    """A JSON file with a list of objects. Raises DataError with this remedy, and UsageError where no file is given."""
    try:
        rows = msgspec.json.decode(_read(file))
    except msgspec.DecodeError as bad:
        raise DataError(f"{file} is not JSON ({bad})", remedy) from bad
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise DataError(f"{file} is not a list of objects", remedy)
    return rows


def jsonl(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """Lines with `prompt` or `messages`; optional `output_tokens`, `class`, `session`; other fields go into the body.

    Lines of OpenAI's batch format (`{"body": {...}}`) work, too. Where there are fewer lines than requests, they are
    repeated from the start; `count` 0 is every line once.
    """
    rows = list(_rows(spec.file))
    if not rows:
        raise DataError(f"{spec.file} has no lines")
    prompts = [_from_row(row, number + 1, spec, tokenizer) for number, row in enumerate(rows)]
    return [prompts[index % len(prompts)] for index in range(count or len(prompts))]


def _from_row(row: dict[str, Json], number: int, spec: DatasetSpec, tokenizer: PromptTokenizer | None) -> Prompt:
    body = row.get("body")
    body = {**body} if isinstance(body, Mapping) else {**row}
    for name in ("model", "stream", "stream_options"):
        body.pop(name, None)
    text, messages = body.pop("prompt", ""), body.pop("messages", None)
    if not isinstance(text, str) or not (text or isinstance(messages, list)):
        raise DataError(f"{spec.file}, line {number} has neither `prompt` nor `messages`")
    output_tokens = None
    for name in OUTPUT_FIELDS:
        value = body.pop(name, None)
        output_tokens = value if output_tokens is None and isinstance(value, int) else output_tokens
    session = body.pop("session", -1)
    return Prompt(
        text=text,
        messages=[message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else (),
        prompt_tokens=len(tokenizer.encode(text)) if tokenizer and text else 0,
        output_tokens=output_tokens or spec.output_len,
        kind=str(body.pop("class", "all")),
        session=session if isinstance(session, int) else -1,
        extra=body,
    )


def sharegpt(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int) -> list[Prompt]:
    """First question and answer length of each conversation, shuffled and filtered as vLLM's benchmark does."""
    if tokenizer is None:
        raise DataError("ShareGPT answers are measured in tokens", "Give --tokenizer")
    conversations = read_list(spec.file, "A list of {conversations: [...]} is wanted")
    pairs = [pair for conversation in conversations if (pair := _first_pair(conversation)) is not None]
    random.Random(spec.seed).shuffle(pairs)
    prompts: list[Prompt] = []
    for question, answer in pairs:
        if len(prompts) == count:
            break
        prompt_tokens = len(tokenizer.encode(question, add_special_tokens=True))
        output_tokens = len(tokenizer.encode(answer, add_special_tokens=True))
        # vLLM's bounds: at least 4 tokens each, at most 1,024 in the prompt and 2,048 in all.
        if (
            prompt_tokens >= 4
            and output_tokens >= 4
            and prompt_tokens <= 1024
            and prompt_tokens + output_tokens <= 2048
        ):
            prompts.append(Prompt(text=question, prompt_tokens=prompt_tokens, output_tokens=output_tokens))
    if not prompts:
        raise DataError(f"{spec.file} has no conversation of usable length")
    return [prompts[index % len(prompts)] for index in range(count)]


def _first_pair(conversation: dict[str, Json]) -> tuple[str, str] | None:
    turns = conversation.get("conversations")
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    texts = [str(turn.get("value", "")) for turn in turns[:2] if isinstance(turn, Mapping)]
    return (texts[0], texts[1]) if len(texts) == 2 else None


@dataclass(frozen=True)
class TraceRow:
    """One recorded request."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    hash_ids: list[int]
    """One for each block of `TRACE_BLOCK` prompt tokens; empty where the trace has none."""
    session: str = ""


def trace(spec: DatasetSpec, tokenizer: PromptTokenizer | None, count: int, *, file: str, speed: float) -> list[Prompt]:
    """A recorded load: start times, prompt and answer lengths; Mooncake's JSONL or Azure's CSV.

    Equal `hash_ids` give equal text, so prefixes that were shared stay shared. `count` 0 is the whole trace.
    """
    corpus = load_text(None)
    source = TextSource(corpus, tokenizer, np.random.default_rng(spec.seed))
    prompts: list[Prompt] = []
    first_s: float | None = None
    for row in _trace_rows(file):
        if count and len(prompts) == count:
            break
        first_s = row.at_s if first_s is None else first_s
        text = _block_text(row, corpus, tokenizer) if row.hash_ids else source.passage(row.prompt_tokens)[0]
        prompts.append(
            Prompt(
                text=text,
                prompt_tokens=row.prompt_tokens,
                output_tokens=max(1, row.output_tokens),
                at_s=(row.at_s - first_s) / speed,
                headers={spec.session_header or "x-session-id": row.session} if row.session else {},
            )
        )
    if not prompts:
        raise DataError(f"{file} has no requests")
    return prompts


def _block_text(row: TraceRow, corpus: str, tokenizer: PromptTokenizer | None) -> str:
    """A prompt whose blocks depend on their hash ids alone."""
    blocks = []
    for index, hash_id in enumerate(row.hash_ids):
        tokens = min(TRACE_BLOCK, row.prompt_tokens - index * TRACE_BLOCK)
        if tokens > 0:
            blocks.append(TextSource(corpus, tokenizer, np.random.default_rng([7, hash_id])).passage(tokens)[0])
    return "\n".join(blocks)


def _trace_rows(file: str) -> Iterator[TraceRow]:
    return _azure_rows(file) if file.endswith(".csv") else _mooncake_rows(file)


def _azure_rows(file: str) -> Iterator[TraceRow]:
    for row in csv.DictReader(_read(file, "--trace").decode(errors="replace").splitlines()):
        try:
            time_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
            yield TraceRow(time_s, int(row["ContextTokens"]), int(row["GeneratedTokens"]), [])
        except (KeyError, TypeError, ValueError) as bad:
            raise DataError(f"{file}: {bad}", "TIMESTAMP, ContextTokens and GeneratedTokens are wanted") from bad


def _mooncake_rows(file: str) -> Iterator[TraceRow]:
    for entry in _rows(file, "--trace"):
        time, prompt_tokens, output_tokens = (_first(entry, names) for names in TRACE_FIELDS)
        if (
            not isinstance(time, int | float)
            or not isinstance(prompt_tokens, int)
            or not isinstance(output_tokens, int)
        ):
            raise DataError(f"{file}: {entry}", "timestamp, input_length and output_length are wanted")
        # Mooncake's `timestamp` is in milliseconds.
        at_s = float(time) / 1000 if "timestamp" in entry else float(time)
        hash_ids = entry.get("hash_ids", [])
        ids = [hash_id for hash_id in hash_ids if isinstance(hash_id, int)] if isinstance(hash_ids, list) else []
        session = entry.get("session")
        if isinstance(session, str) and session and not ids:
            # All prompts of a session begin with the same text.
            first = zlib.crc32(session.encode()) << 16
            ids = list(range(first, first + -(-prompt_tokens // TRACE_BLOCK)))
        yield TraceRow(at_s, prompt_tokens, output_tokens, ids, session if isinstance(session, str) else "")


def _first(entry: Mapping[str, Json], names: Sequence[str]) -> Json:
    return next((entry[name] for name in names if name in entry), None)
