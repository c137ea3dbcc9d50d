"""The version of fxcache, in one place: the build reads it here, and every cache key contains it."""

__version__ = "0.1.0"
