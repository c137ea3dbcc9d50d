"""Tests of fxcache."""
