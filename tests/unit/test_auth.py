"""The file of hashed API keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve_app.ingress import auth
from serve_app.ingress.auth import BadKeysFile, KeyLimits, KeyStore
from serve_app.protocol.service_class import ServiceClass, Share


def stored(tmp_path: Path, text: str) -> KeyStore:
    file = tmp_path / "keys.txt"
    file.write_text(text)
    return KeyStore.load(file)


def test_a_key_is_found_by_its_name_and_no_other(tmp_path: Path) -> None:
    ann, bob = auth.new_key(), auth.new_key()
    text = f"# the team\n\n{auth.line_for('ann', ann)}  # laptop\n{auth.line_for('bob', bob)}\n"
    store = stored(tmp_path, text)
    assert [store.name_of(ann), store.name_of(bob)] == ["ann", "bob"]
    assert store.name_of(auth.new_key()) is None
    assert store.name_of("") is None
    assert len(store) == 2


def test_the_limits_of_a_key_are_in_its_line(tmp_path: Path) -> None:
    limits = KeyLimits(requests_per_minute=600, max_concurrent=32)
    line = auth.line_for("ann", auth.new_key(), limits)
    assert line.endswith(" requests_per_minute=600 max_concurrent=32")
    other = auth.line_for("bob", auth.new_key())
    assert stored(tmp_path, f"{line}  # team\n{other}\n").limits() == {"ann": limits}


def test_the_share_of_a_key_is_in_its_line(tmp_path: Path) -> None:
    share = Share(ServiceClass.INTERACTIVE, weight=4)
    line = auth.line_for("ann", auth.new_key(), KeyLimits(max_concurrent=8), share)
    assert line.endswith(" max_concurrent=8 class=interactive weight=4")
    batch = auth.line_for("cid", auth.new_key(), share=Share(ServiceClass.BATCH))
    assert batch.endswith(" class=batch")
    store = stored(tmp_path, f"{line}\n{auth.line_for('bob', auth.new_key())}\n{batch}\n")
    assert [store.share_of(name) for name in ("ann", "bob", "cid")] == [share, Share(), Share(ServiceClass.BATCH)]
    assert "cid" not in store.limits()


def test_neither_file_nor_repr_tells_a_key(tmp_path: Path) -> None:
    key = auth.new_key()
    store = stored(tmp_path, auth.line_for("ann", key))
    assert key not in repr(store)
    assert key not in auth.line_for("ann", key)


def test_new_keys_differ_and_can_be_recognised() -> None:
    made = {auth.new_key() for _ in range(50)}
    assert len(made) == 50
    assert all(key.startswith("sk-step-") and len(key) > 48 for key in made)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("# only a comment\n", "holds no key"),
        ("ann\n", "keys.txt:1: expected `name sha256:"),
        ("\nann sk-step-plain\n", "keys.txt:2: expected `name sha256:"),
        ("ann sha256:abc\n", "keys.txt:1: expected"),
        (f"ann sha256:{'0' * 64} sk-step-plain\n", "keys.txt:1: after the hash come settings, `NAME=VALUE`"),
        (f"ann sha256:{'0' * 64} requests=5\n", "with names of requests_per_minute, tokens_per_minute, max_concurrent"),
        (f"ann sha256:{'0' * 64} max_concurrent=0\n", "keys.txt:1: max_concurrent wants a whole number from 1 to"),
        (f"ann sha256:{'0' * 64} max_concurrent=1e3\n", "keys.txt:1: max_concurrent wants a whole number"),
        (f"ann sha256:{'0' * 64} max_concurrent={'9' * 5000}\n", "keys.txt:1: max_concurrent wants a whole number"),
        (f"ann sha256:{'0' * 64} max_concurrent=1 max_concurrent=2\n", "keys.txt:1: max_concurrent is there twice"),
        (f"ann sha256:{'0' * 64} class=urgent\n", "keys.txt:1: class wants one of batch, standard, interactive"),
        (f"ann sha256:{'0' * 64} weight=0\n", "keys.txt:1: weight wants a whole number from 1 to 1000"),
        (f"ann sha256:{'0' * 64} weight=2.5\n", "keys.txt:1: weight wants a whole number"),
        (f"a b sha256:{'0' * 64}\n", "keys.txt:1: expected"),
        (f"ann sha256:{'0' * 64}\nann sha256:{'1' * 64}\n", "keys.txt:2: the name 'ann' is already on line 1"),
        (f"-ann sha256:{'0' * 64}\n", "keys.txt:1: a name has letters"),
    ],
)
def test_a_bad_line_is_refused_with_its_place_and_never_quoted(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadKeysFile) as caught:
        stored(tmp_path, text)
    assert words in str(caught.value)
    assert "sk-step-plain" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadKeysFile, match="No such file"):
        KeyStore.load(tmp_path / "none.txt")


def test_a_name_that_the_file_would_refuse_is_refused_when_the_key_is_made() -> None:
    with pytest.raises(BadKeysFile, match="a name has letters"):
        auth.line_for("two words", auth.new_key())
