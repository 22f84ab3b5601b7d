"""`python -m bench.hostile`: what a hostile request costs the streams beside it."""
