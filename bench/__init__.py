"""`python -m bench`: what our topology costs against the bare vLLM server, measured with vLLM's own client.

servers.py    the topologies, each started once and left running
client.py     vLLM's benchmark client, in a process of its own
cpu.py        CPU time of a topology's processes, read from /proc while a run goes on
measure.py    rounds: every topology once, in turn, with the same prompts
report.py     figures, ratios to the bare server of the same round, and what is asked
"""
