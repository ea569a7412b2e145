"""The VF of an Intel 82576 or I350, driven from user space.

The ladder: function (guest/) -> registers -> mailbox to the PF -> device (reset, addresses, queues,
link, counters) -> `IgbVf`, which opens all of it for the kernel's port (pmd/csrc/port_igbvf.c).
"""
