"""What the guest kernel gives us: PCI functions, VFIO, vfio-user, memory mappings, CPUs.

Ladder, upwards: discovery names a function; binding gives it to vfio-pci; `Function` opens it; its
regions are mapped (`Mapping`). Teardown is the exact reverse. No virtio word appears here.
"""
