"""The generated training tasks: what a client sends, and the answer that the model should give."""
