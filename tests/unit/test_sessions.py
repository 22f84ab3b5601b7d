"""Which session a request belongs to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.ingress import sessions
from serve_app.router.request_context import Session

ID = "57a121ec-f78c-48c3-a745-e3036a3ecc33"
CLAUDE_USER = {"device_id": "d" * 64, "account_uuid": "", "session_id": ID}


@pytest.mark.parametrize(
    ("headers", "request_body", "found"),
    [
        # Claude Code 2.1.197: both, and the header counts.
        (
            {"x-claude-code-session-id": ID, "x-claude-code-agent-id": "a1"},
            {"metadata": {"user_id": json.dumps(CLAUDE_USER)}},
            Session(ID, "x-claude-code-session-id"),
        ),
        # Older ones: in the user id, whose form has changed.
        ({}, {"metadata": {"user_id": json.dumps(CLAUDE_USER)}}, Session(ID, "metadata.user_id session")),
        (
            {},
            {"metadata": {"user_id": f"user_{'0' * 64}_account__session_{ID}"}},
            Session(ID, "metadata.user_id session"),
        ),
        # Codex 0.171.0: one session for an agent and its children, each of which has a thread of its own.
        (
            {"session-id": ID, "thread-id": "child", "x-client-request-id": "child"},
            {"prompt_cache_key": ID},
            Session(ID, "session-id"),
        ),
        ({"session_id": ID}, {}, Session(ID, "session_id")),
        # OpenCode 1.18.33.
        ({"x-session-id": "ses_1", "x-session-affinity": "ses_1"}, {}, Session("ses_1", "x-session-id")),
        (
            {"x-session-id": "ses_2", "x-session-affinity": "ses_2", "x-parent-session-id": "ses_1"},
            {},
            Session("ses_1", "x-parent-session-id"),
        ),
        # SDKs.
        ({"x-client-request-id": "of this request only"}, {}, None),
        ({}, {"prompt_cache_key": "mine", "user": "ann"}, Session("mine", "prompt_cache_key")),
        ({}, {"vllm_xargs": {"session_id": "x"}}, Session("x", "vllm_xargs.session_id")),
        ({}, {"metadata": {"session_id": "m"}, "user": "ann"}, Session("m", "metadata.session_id")),
        # Who sets the plain header means it.
        ({"x-session-id": "set", "x-claude-code-session-id": ID}, {}, Session("set", "x-session-id")),
        # Nothing, and what is nothing.
        ({}, {}, None),
        ({"x-session-id": " "}, {"user": "", "metadata": None, "prompt_cache_key": 5, "session_id": ["a"]}, None),
    ],
)
def test_the_first_name_of_the_order_counts(
    headers: dict[str, str], request_body: dict[str, Any], found: Session | None
) -> None:
    assert sessions.find(headers, request_body) == found


@pytest.mark.parametrize(
    ("request_body", "source"),
    [
        ({"safety_identifier": "ann@example.com", "user": "other"}, "safety_identifier"),
        ({"user": "ann@example.com"}, "user"),
        ({"metadata": {"user_id": "ann@example.com"}}, "metadata.user_id"),
    ],
)
def test_a_user_comes_last_and_is_not_spelled_out(request_body: dict[str, Any], source: str) -> None:
    found = sessions.find({}, request_body)
    assert found is not None
    assert found.source == source
    assert "ann" not in found.name
    assert found == sessions.find({}, request_body)


def test_a_long_name_becomes_a_short_one_that_still_differs() -> None:
    first, other = (sessions.find({"x-session-id": "s" * 3000 + end}, {}) for end in "ab")
    assert first is not None
    assert other is not None
    assert len(first.name) <= sessions.MAX_NAME_CHARS
    assert first.name != other.name


def test_two_clients_do_not_share_a_session() -> None:
    session = Session("one", "x-session-id")
    assert session.id_for("ann") == session.id_for("ann") != session.id_for("bob")


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
FIELDS = ("session_id", "vllm_xargs", "prompt_cache_key", "metadata", "safety_identifier", "user")


@given(
    st.dictionaries(st.sampled_from([*sessions.HEADERS, "x-request-id"]), st.text(max_size=300)),
    st.dictionaries(
        st.sampled_from(FIELDS),
        VALUES | st.dictionaries(st.sampled_from(["user_id", "session_id"]), VALUES | st.just('{"session_id": {}}')),
    ),
)
def test_whatever_is_sent_is_a_short_name_or_none(headers: dict[str, str], request_body: dict[str, Any]) -> None:
    found = sessions.find(headers, request_body)
    assert found is None or 0 < len(found.name) <= sessions.MAX_NAME_CHARS
    assert found is None or found.id_for("ann") != found.id_for("bob")
