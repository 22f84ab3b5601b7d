"""Step-3.7-Flash on Ray Serve: a fleet of vLLM engines behind one OpenAI- and Anthropic-compatible endpoint."""
