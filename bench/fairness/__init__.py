"""One client floods the service: what the others notice. Fake engines, in virtual time (`bench/routing`)."""
