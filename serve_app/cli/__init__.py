"""From a command to a running service, and what a person asks before: checks, plan, launch, words on the screen."""
