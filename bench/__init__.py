"""`python -m bench`: what our topology costs compared with the bare vLLM server, measured with vLLM's own client.

servers.py         the topologies, each started once
client.py          vLLM's benchmark client, in a process of its own
cpu.py             CPU time of a topology's processes during a run
measure.py         rounds: every topology once, in turn, with the same prompts
report.py          figures, ratios to the bare server of the same round, and the targets
response_lines.py  the lines of a response as they arrive, for the commands below

`python -m bench.starvation`, `bench.hostile` and `bench.watchdog` are commands of their own.
"""
