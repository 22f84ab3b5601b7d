"""From records to metrics. Pure: no connections, and no files except those that `compare` reads."""
