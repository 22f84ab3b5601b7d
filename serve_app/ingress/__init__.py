"""The HTTP edge: what happens to a request between the client and the router."""
