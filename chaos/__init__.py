"""`python -m chaos`: injects faults into engine replicas under load, and checks what the clients received.

    options.py            the flags, checked
    request_spec.py       draws the requests; `stream.py` sends one, `events.py` and `response_recorder.py` record it
    client.py             the HTTP clients of a run
    sampling.py           rounds, tokens and replicas, all from the seed
    fleet.py, service.py  replicas, metrics and access log; `changes.py` changes of the deployment
    fault_target.py       one fault: injected and ended
    procs.py              signals to local processes; `ray_agent.py` the same on other nodes, through Ray
    rounds.py             faults in rounds; `rolling.py` a closed loop through upgrades and scaling
    analysis.py           differences, affected streams and gaps; `report.py` prints them

A fault proves something only if the right answer is known. So every request is first sent without a fault (the
baseline), and every later answer is compared with it, character by character.
"""
