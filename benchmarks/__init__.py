"""Benchmarks and demos of fxcache; run them as modules from the repository root."""
