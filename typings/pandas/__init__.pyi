# pandas annotates its lookups with unions so wide (a column may be a date) that almost every line
# of frame code is an error. So the checker takes it as untyped; without this file it says the rest.
from typing import Any

def __getattr__(name: str) -> Any: ...
