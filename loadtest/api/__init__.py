"""The three APIs: request bodies, response parsing, and the record of a request."""
