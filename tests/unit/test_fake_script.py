"""The fake engine's scripted answers: chosen by the prompt alone, written in the model's own format."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from serve_app.engine.fake import FakeEngine
from serve_app.engine.fake_config import FakeEngineConfig, fake_engine_config
from serve_app.engine.fake_script import AnswerScript, FaultKind, load_conversations, load_tokenizer
from serve_app.protocol.errors import EngineDead
from serve_app.protocol.messages import WIRE_VERSION, AttemptRequest, RequestSpec, TokenDelta, encode_tokens

MODEL = Path(__file__).parents[2] / "models" / "step-tiny"

EDIT = {"file_path": "{{file}}", "old_string": 'a = "1"', "new_string": "a = 2\nb = 'ü 🙂'", "count": 2}
SCRIPT: list[dict[str, Any]] = [
    {
        "when": [r"TASK-EDIT (?P<file>/\S+)"],
        "unless": ["Write a title"],
        "turns": [
            {"think": "First read.", "calls": [{"name": "Read", "arguments": {"file_path": "{{file}}"}}]},
            {"say": "Both at once.", "calls": [{"name": "Edit", "arguments": EDIT}, {"name": "Bash"}]},
            {"say": "Done."},
        ],
    },
    {"last": ["^user\nping"], "turns": [{"raw": "pong"}]},
]


def tokenizer() -> Tokenizer:
    return load_tokenizer(str(MODEL))


def ids(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False).ids)


def chat(*turns: tuple[str, str]) -> str:
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return said + "<|im_start|>assistant\n<think>\n"


def says(prompt: str | list[int], script: list[dict[str, Any]] | None = None) -> str | None:
    conversations = load_conversations(script if script is not None else SCRIPT)
    answer = AnswerScript(conversations, tokenizer()).answer(ids(prompt) if isinstance(prompt, str) else prompt)
    return None if answer is None else tokenizer().decode(list(answer.token_ids), skip_special_tokens=False)


ASKED = ("user", "TASK-EDIT /tmp/a.py please")


def test_each_turn_of_a_conversation_has_its_answer() -> None:
    read = "<tool_call>\n<function=Read>\n<parameter=file_path>\n/tmp/a.py\n</parameter>\n</function>\n</tool_call>"
    assert says(chat(ASKED)) == f"First read.\n</think>\n{read}"
    second = says(chat(ASKED, ("assistant", "x"), ("tool_response", "the file")))
    assert second is not None
    assert second.startswith(
        "\n</think>\nBoth at once.\n<tool_call>\n<function=Edit>\n<parameter=file_path>\n/tmp/a.py\n"
    )
    assert "<parameter=count>\n2\n</parameter>" in second
    assert "b = 'ü 🙂'\n</parameter>" in second
    assert second.endswith("\n<tool_call>\n<function=Bash>\n</function>\n</tool_call>")
    for more in range(2, 5):
        assert says(chat(ASKED, *[("assistant", "x")] * more)) == "\n</think>\nDone."


def test_turns_are_counted_from_where_the_conversation_begins() -> None:
    before = [("user", "hello"), ("assistant", "hi")]
    assert says(chat(*before, ASKED)) == says(chat(ASKED))


def test_a_prompt_that_opens_no_thought_gets_none_and_a_prefilled_turn_is_the_one_to_be_said() -> None:
    prompt = chat(ASKED).removesuffix("<think>\n")
    answer = says(prompt)
    assert answer is not None
    assert answer.startswith("<tool_call>")
    assert says(prompt + "I will") == answer


def test_patterns_look_at_the_prompt_its_last_message_and_what_must_be_absent() -> None:
    assert says(chat(("user", "ping"))) == "pong"
    assert says(chat(("user", "ping"), ("assistant", "pong"), ("user", "more"))) is None
    assert says(chat(("system", "Write a title"), ASKED)) is None


def test_image_tokens_and_ids_out_of_the_vocabulary_do_not_matter() -> None:
    image = [tokenizer().token_to_id("<im_patch>")] * 169
    assert says([*image, -1, 1 << 40, *ids(chat(ASKED))]) == says(chat(ASKED))


def test_sixty_thousand_tokens_are_read() -> None:
    filler = ids("the quick brown fox 123; " * 8000)
    assert len(filler) > 60_000
    assert says([*filler, *ids(chat(ASKED))]) == says(chat(ASKED))


def test_settings_name_a_file_or_hold_the_script(tmp_path: Path) -> None:
    file = tmp_path / "script.yaml"
    file.write_text("- when: [hi]\n  turns:\n  - say: hello\n    fault: {kind: crash, at_text: lo}\n")
    config = fake_engine_config({"script": str(file)}, tokenizer=str(MODEL))
    assert config == fake_engine_config({"script": load_conversations(str(file)), "tokenizer": str(MODEL)})
    (conversation,) = config.script
    assert conversation.turns[0].fault is not None
    assert conversation.turns[0].fault.kind is FaultKind.CRASH


@pytest.mark.parametrize(
    ("script", "says_so"),
    [
        ([{"when": ["x"], "turns": []}], "no turns"),
        ([{"turns": [{"speak": "x"}]}], "speak"),
        ([{"when": ["("], "turns": [{"say": "x"}]}], "unterminated"),
        ("/no/such/file.yaml", "cannot be read"),
        ([{"when": ["x"], "turns": [{"say": "x", "fault": {"kind": "crash", "at_text": "y"}}]}], "'y'"),
    ],
)
def test_a_script_that_cannot_work_is_refused(script: Any, says_so: str) -> None:
    with pytest.raises(ValueError, match=says_so):
        FakeEngine(fake_engine_config({"script": script}, tokenizer=str(MODEL)), lambda _: None)


async def run(config: FakeEngineConfig, emitted: Sequence[int] = ()) -> list[int]:
    """The tokens of an attempt, up to its end or the engine's."""
    tokens: list[int] = []

    def sink(deltas: Sequence[TokenDelta]) -> None:
        tokens.extend(token for delta in deltas for token in delta.token_ids)

    engine = FakeEngine(config, sink)
    await engine.start(lambda _: None)
    attempt = AttemptRequest(
        WIRE_VERSION,
        "a",
        "i",
        RequestSpec("r", encode_tokens(ids(chat(ASKED))), 500, 0, False, [], 0, [b""]),
        list(emitted),
    )
    try:
        async with asyncio.timeout(10):
            await engine.run(attempt)
    except EngineDead:
        tokens.append(-1)
    finally:
        await engine.shutdown()
    return tokens


async def test_an_engine_dies_in_the_middle_of_arguments_and_another_goes_on_with_them() -> None:
    turn = {"calls": [{"name": "Edit", "arguments": EDIT}], "fault": {"kind": "crash", "at_text": '= "1"'}}
    script = [{"when": [r"TASK-EDIT (?P<file>/\S+)"], "turns": [turn]}]
    dying = fake_engine_config({"script": script, "tokens_per_step": 3}, tokenizer=str(MODEL))
    head = await run(dying)
    assert head.pop() == -1
    text = tokenizer().decode(head, skip_special_tokens=False)
    assert text.endswith("<parameter=old_string>\na")
    rest = await run(dying, emitted=head)
    assert rest[-1] == tokenizer().token_to_id("<|im_end|>")
    whole = tokenizer().decode([*head, *rest[:-1]], skip_special_tokens=False)
    assert whole == says(chat(ASKED), script)
