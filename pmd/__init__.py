"""The daemon: the compiled ring-batch kernel, channels, poll loops, statistics, the command line.

Ladder, upwards: a channel joins an attached vhost-pci function and a VF; lcores run channels'
queue pairs in the kernel; the daemon watches for changes, pauses the lcores concerned and sets
them up anew.
"""
