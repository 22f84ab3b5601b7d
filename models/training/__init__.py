"""Trains and evaluates the demo model, `models/step-tiny`. `python -m models.training -h` lists the commands."""
