"""The command line: flags, their checks, and vLLM's own command taken in."""
