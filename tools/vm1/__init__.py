"""The embedded VM1: a virtio-net driver with a vhost-user front-end."""
