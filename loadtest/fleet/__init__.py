"""The state of the fleet during a run, from Ray's dashboard and the servers' metrics pages."""
