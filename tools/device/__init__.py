"""The device: vhost-user back-end towards VM1, vfio-user server towards VM2 (docs/device.md)."""
