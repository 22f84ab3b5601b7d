"""Compares routing policies: agents' sessions over fake engines with prefix caches, in virtual time.

The dispatcher, the replicas and the fake engines are those of the service. Only the network, HTTP and the clock are
left out: an hour of a fleet takes a minute here, and the same seed gives the same figures.
"""
