"""What speaks HTTP: between a client's connection and the engines."""
