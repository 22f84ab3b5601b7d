"""Data sets: from options to a list of prompts."""
