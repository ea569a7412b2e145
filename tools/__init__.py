"""The other side, and the workshop. Started as processes; nothing imports this package."""
