"""When Python looks for garbage that refers to itself.

As it comes, after every 700 objects made, and now and then through all there are. Modules that are being imported make
a hundred thousand, none of them garbage, and so do messages of the source that are read in a burst: on 1 million rows
that took more time than reading them.
"""

from __future__ import annotations

import gc
from typing import Final

#: Look when there are so many more objects than before: a piece of the stream has fewer.
THRESHOLD: Final = 200_000


def loading() -> None:
    """Modules are imported: do not look."""
    gc.disable()


def loaded() -> None:
    """They were: what there is now stays. Does nothing if `loading` was not called."""
    if not gc.isenabled():
        gc.freeze()
        gc.set_threshold(THRESHOLD)
        gc.enable()
