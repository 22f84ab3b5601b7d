"""A load test for LLM endpoints that tells the truth about them.

The rule of this package: measure first, understand later. While a request runs, only the time of each socket read and
its bytes are kept; everything else (framing, JSON, metrics, plots) happens afterwards. It imports neither ray, vllm nor
torch, so it starts in about a second and runs from any machine that can reach the server.
"""

__version__ = "0.2.0"
