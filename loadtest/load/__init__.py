"""The load: when requests start, how many processes send them, and one worker's loop."""
