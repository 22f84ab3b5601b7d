"""What Ray's dashboard and the servers' metrics pages tell during a run."""
