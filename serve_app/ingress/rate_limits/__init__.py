"""The limits of API keys: requests and tokens per minute, requests at a time; exact over all ingresses."""
