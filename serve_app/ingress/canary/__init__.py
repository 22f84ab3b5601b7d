"""A canary: another engine configuration beside the service, tried on a share of its sessions, and judged."""
