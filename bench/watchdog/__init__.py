"""`python -m bench.watchdog`: checks that the watchdog kills no slow engine and finds every engine that hangs."""
