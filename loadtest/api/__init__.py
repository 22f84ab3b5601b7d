"""The three APIs: request bodies, and what the answers to them say."""
