"""Which replica a request goes to, whether it may, and what happens to it when that replica is lost."""
