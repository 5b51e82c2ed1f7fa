"""What the folder of a step holds, for those that need no arrays to look."""

import os

STATE, META = "state", "meta"
# In a state: the index of all processes' arrays, which storage.merge makes.
MERGED = "manifest.ocdbt", f"d{os.sep}"
