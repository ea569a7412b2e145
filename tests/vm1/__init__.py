"""Tests of the embedded VM1."""
