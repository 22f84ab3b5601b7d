"""What the front end costs: our ingress against vLLM's own API server, over the same engine core that computes nothing.

`python -m bench front-end` starts both, suspends one while it measures the other, and counts CPU time by process.
"""
