# pandas annotates its lookups with unions so wide (a column may be a date) that almost every line of frame
# code is an error. The checker therefore takes pandas as untyped; delete this file to see what it would say.
from typing import Any

def __getattr__(name: str) -> Any: ...
