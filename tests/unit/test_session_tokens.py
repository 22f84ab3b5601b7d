"""What would have to be computed again if a replica were stopped."""

from __future__ import annotations

from serve_app.engine.session_tokens import SESSION_MEMORY_S, SessionTokens

ALICE, BOB = ("alice", "1"), ("bob", "2")


def ended(sessions: SessionTokens, session: tuple[str, str] | None, tokens: int, now_s: float = 0.0) -> None:
    sessions.enter(session)
    sessions.leave(session, tokens, now_s)


def test_running_requests_and_sessions_that_may_come_back_count() -> None:
    sessions = SessionTokens(0)
    assert sessions.lost(700, 0.0) == 700
    ended(sessions, ALICE, 50_000)
    ended(sessions, BOB, 20_000)
    assert sessions.lost(700, 1.0) == 70_700


def test_a_session_counts_once_by_its_longest_request() -> None:
    sessions = SessionTokens(0)
    ended(sessions, ALICE, 50_000)
    ended(sessions, ALICE, 3_000)
    assert sessions.lost(0, 1.0) == 50_000


def test_a_session_with_a_running_request_counts_by_that() -> None:
    sessions = SessionTokens(0)
    ended(sessions, ALICE, 50_000)
    sessions.enter(ALICE)
    assert sessions.lost(50_100, 1.0) == 50_100
    sessions.leave(ALICE, 50_400, 2.0)
    assert sessions.lost(0, 2.0) == 50_400


def test_what_nobody_continues_is_no_loss() -> None:
    sessions = SessionTokens(0)
    ended(sessions, None, 9_000)
    ended(sessions, BOB, 0)  # its replica never began it
    assert sessions.lost(0, 0.0) == 0


def test_a_session_that_is_silent_for_long_is_forgotten() -> None:
    sessions = SessionTokens(0)
    ended(sessions, ALICE, 50_000, 0.0)
    ended(sessions, BOB, 20_000, 100.0)
    ended(sessions, ALICE, 1_000, 200.0)
    assert sessions.lost(0, SESSION_MEMORY_S + 150.0) == 50_000
    assert sessions.lost(0, SESSION_MEMORY_S + 200.0) == 0


def test_no_more_is_lost_than_the_cache_holds() -> None:
    sessions = SessionTokens(cache_tokens=60_000)
    ended(sessions, ALICE, 50_000)
    ended(sessions, BOB, 20_000)
    assert sessions.lost(500, 1.0) == 60_500
