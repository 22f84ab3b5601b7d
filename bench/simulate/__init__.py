"""Compares the simulator with a real run: the service over fake engines on this machine, and the model of it."""
