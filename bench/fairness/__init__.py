"""What clients notice of each other under load. Fake engines, in virtual time (`bench/routing`)."""
