"""The configuration: its schema, its files, and the arithmetic of GPUs and memory that checks it."""
