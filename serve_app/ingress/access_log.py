"""Logging at the edges of our processes: one line per record, the event's name and its fields as JSON.

Serve buffers its own log files by a thousand lines when it is set to be fast; ours go to the actor's standard error,
where Ray picks them up at once (dashboard, `ray logs`, the terminal of `serve run`)."""

from __future__ import annotations

import logging
import sys

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class FieldsFormatter(logging.Formatter):
    """`LEVEL logger: event {"field": value}`; the fields are what the caller passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD and name[:4] != "ray_"}
        if fields:
            line += " " + msgspec.json.encode(fields, enc_hook=str).decode()
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send what `serve_app` logs in this process to standard error. Calling it again changes nothing."""
    logger = logging.getLogger("serve_app")
    if any(isinstance(handler.formatter, FieldsFormatter) for handler in logger.handlers):
        return
    handler = logging.StreamHandler(sys.__stderr__)
    handler.setFormatter(FieldsFormatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
