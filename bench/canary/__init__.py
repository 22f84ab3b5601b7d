"""`python -m bench canary`: good and bad canaries beside a fleet, in virtual time."""
