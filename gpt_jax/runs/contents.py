"""Names in the folder of a step, for modules that do not import Orbax."""

import os

STATE, META = "state", "meta"
# In STATE: the index of all processes' arrays, which storage.merge makes.
MERGED = "manifest.ocdbt", f"d{os.sep}"
