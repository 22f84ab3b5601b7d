"""Engines: what a replica owns. `contract.py` says what one must do; `vllm.py` and `fake.py` do it."""
