"""The command line: flags, their checks, and the translation of `vllm bench serve` commands."""
