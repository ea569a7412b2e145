"""The kernel by its stages: instructions a packet, and time with another core as VM1."""
