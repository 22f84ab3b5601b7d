"""What many engines cost an ingress: `python -m bench many`."""
