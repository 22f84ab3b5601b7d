"""The demo model: weights in `step-tiny`, the code that made them in `training`."""
