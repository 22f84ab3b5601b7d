"""`python -m chaos`: loses engine replicas on purpose, under load, and tells what the clients saw.

    options.py            what was asked for, and whether it may be done
    request_spec.py       the requests; `response_recorder.py` what came back, `stream.py` over which connection
    sampling.py           which wave, which token, which replica: all from the seed
    service.py            what Serve says of the replicas, and its metrics and logs
    procs.py              signals to processes; `ray_agent.py` the same on other nodes, through Ray
    fault_injector.py     one fault: made, and undone
    rounds.py             faults in waves; `rolling.py` a closed loop through upgrades and scaling
    analysis.py           what differs, who was hit, how long it was silent; `report.py` says so

The rule: a fault is worth nothing without knowing what the answer should have been. Every request is first asked for
without a fault, and what comes with one is compared byte by byte.
"""
