"""Structured outputs: each grammar is tried in a process of its own before an engine sees it."""
