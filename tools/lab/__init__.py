"""`vhost-pci-lab`: the whole picture on this machine, two real virtual machines and an outside.

What it needs comes from Debian packages into a cache (`debian`, `cache`); from these it makes an
image (`image`), boots a template once and restores machines from it (`vm`, `template`), and
connects them (`picture`). `check` proves that it works, `keeper` lets a user play with it.
"""
