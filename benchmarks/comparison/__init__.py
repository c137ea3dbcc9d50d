"""The parts of `benchmarks.compare`: models, contestants, and what is measured of them."""
