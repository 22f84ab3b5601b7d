"""`python -m serve_app rehearse`: the whole service on this machine's GPUs with dummy weights, before a download.

    setup.py        what is rehearsed here, and the deploy.yaml for it; or why nothing can be
    dummy_model.py  a checkpoint of the true shape without weights
    service.py      the service as `serve` starts it, and the phases of its start
    measure.py      requests, load, a killed engine, memory
    facts.py        what was measured; figures from vLLM's log
    verdict.py      facts in, findings out; `page.py` and `command.py` show them

Only the weights, and how many draft tokens are accepted, are simulated. The commands are those that a user runs:
`serve`, the load test, `chaos`.
"""
