"""`python -m bench.hostile`: what a hostile request costs those beside it."""
