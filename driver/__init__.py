"""What the devices are: the vhost-pci function, its memory map and rings, and the VFs.

Ladder, upwards: a `guest` Function is attached (`vhost_pci`); its state area is read
(`state_area`); bus addresses are translated (`memory_map`); rings are checked (`ring`). No
sysfs path appears here.
"""
