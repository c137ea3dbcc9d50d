"""Tests of tracing the blocks of one structure once."""
