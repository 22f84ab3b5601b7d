"""Requests as clients send them, made into what vLLM's API server takes: one module per API."""
