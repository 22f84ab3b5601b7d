"""`python -m serve_app`: from a command to a running service, and what a person asks before: checks, plan."""
