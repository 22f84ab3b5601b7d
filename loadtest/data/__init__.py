"""Data sets: each module turns its own options into a list of prompts."""
