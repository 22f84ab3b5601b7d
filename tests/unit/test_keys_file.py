"""The keys file is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from serve_app.ingress import auth, keys_file
from serve_app.ingress.auth import BadKeysFile, KeyLimits
from serve_app.ingress.keys_file import KeysFile
from serve_app.protocol.service_class import ServiceClass, Share


def write(file: Path, *lines: str) -> None:
    """In place of the file, as an editor or a mounted secret does it: another inode."""
    new = file.with_suffix(".new")
    new.write_text("\n".join(lines))
    new.replace(file)


def test_keys_and_limits_follow_the_file(tmp_path: Path) -> None:
    file, ann, bob = tmp_path / "keys.txt", auth.new_key(), auth.new_key()
    write(file, auth.line_for("ann", ann))
    keys = KeysFile(file)
    before = keys.limits()
    keys.look()
    assert keys.limits() is before
    write(file, auth.line_for("ann", ann, KeyLimits(max_concurrent=2)), auth.line_for("bob", bob))
    keys.look()
    assert [keys.name_of(ann), keys.name_of(bob)] == ["ann", "bob"]
    assert keys.limits() == {"ann": KeyLimits(max_concurrent=2)}
    write(file, auth.line_for("bob", bob))
    keys.look()
    assert [keys.name_of(ann), keys.name_of(bob)] == [None, "bob"]


def test_a_bad_file_keeps_the_last_good_one_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, ann = tmp_path / "keys.txt", auth.new_key()
    write(file, auth.line_for("ann", ann))
    keys = KeysFile(file)
    with caplog.at_level(logging.ERROR, "serve_app"):
        write(file, auth.line_for("ann", ann), "bob max_concurrent=1")
        for _ in range(3):
            keys.look()
    assert keys.name_of(ann) == "ann"
    assert [f"{file}:2: expected" in record.problem for record in caplog.records] == [True]  # type: ignore[attr-defined]
    file.unlink()
    keys.look()
    assert keys.name_of(ann) == "ann"


def _fails(*_args: object, **_named: object) -> str:
    raise OSError(5, "Input/output error")


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, ann, bob = tmp_path / "keys.txt", auth.new_key(), auth.new_key()
    write(file, auth.line_for("ann", ann))
    keys = KeysFile(file)
    write(file, auth.line_for("bob", bob))
    with monkeypatch.context() as broken:
        broken.setattr(auth.Path, "read_text", _fails)
        keys.look()
    assert keys.name_of(bob) is None
    keys.look()
    assert keys.name_of(bob) == "bob"


def test_a_class_follows_the_file_too(tmp_path: Path) -> None:
    file, ann = tmp_path / "keys.txt", auth.new_key()
    write(file, auth.line_for("ann", ann))
    keys = KeysFile(file)
    write(file, auth.line_for("ann", ann, share=Share(ServiceClass.BATCH, 2)))
    keys.look()
    assert keys.share_of("ann") == Share(ServiceClass.BATCH, 2)


class Watched(KeysFile):
    """Says when it has looked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.looked = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def look(self) -> None:
        super().look()
        self._loop.call_soon_threadsafe(self.looked.set)


async def test_the_file_is_looked_at_while_it_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_file, "LOOK_EVERY_S", 0.001)
    file, ann, bob = tmp_path / "keys.txt", auth.new_key(), auth.new_key()
    write(file, auth.line_for("ann", ann))
    keys = Watched(file)
    write(file, auth.line_for("bob", bob))
    async with keys:
        await asyncio.wait_for(keys.looked.wait(), 10)
    assert keys.name_of(bob) == "bob"


def test_there_is_no_beginning_without_a_good_file(tmp_path: Path) -> None:
    with pytest.raises(BadKeysFile):
        KeysFile(tmp_path / "none.txt")
