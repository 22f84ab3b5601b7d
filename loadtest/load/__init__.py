"""Sends the load: when, from how many processes, and one worker's loop."""
