"""`python -m serve_app rehearse`: the whole service on this machine's GPUs with dummy weights, before a download.

    setup.py        what is rehearsed here, and the deploy.yaml for it; or why nothing can be
    dummy_model.py  a checkpoint of the true shape without weights
    service.py      the service as `serve` starts it, and its start's phases
    measure.py      requests, load, a killed engine, memory
    facts.py        what was measured; what vLLM's log says
    verdict.py      facts in, findings out; `page.py` and `command.py` show them

The rule: nothing is simulated but the weights and how many draft tokens are accepted. The commands are those that a
user runs: `serve`, the load test, `chaos`.
"""
