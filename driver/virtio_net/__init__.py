"""A virtio network function, driven from user space: any that is a modern virtio PCI device.

The ladder: function (guest/) -> capabilities, where its structures are -> registers -> device
(reset, features, queues, link) -> control queue (addresses, queue pairs) -> `VirtioNetVf`, which
opens all of it for the kernel's port (pmd/csrc/port_virtio.c). Section numbers are of the virtio
specification, 1.3.
"""
