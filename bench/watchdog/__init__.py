"""`python -m bench.watchdog`: whether the watchdog lets every slow engine live, and finds every engine that hangs."""
