"""`python -m serve_app simulate`: a trace of requests over a modelled fleet in virtual time, for several policies."""
