"""HTTP/1.1 as a measuring client needs it: connections, timed reads, server-sent events."""
