"""HTTP/1.1 client for measurements: connections, timestamped reads, server-sent events."""
