"""Tests of the daemon: its parts by themselves, and the real thing from end to end."""
