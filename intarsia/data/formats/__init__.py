"""How image-text pairs lie on disk, one file a format.

`intarsia.data.opening.open_source` finds out which one a path holds.
"""
