"""What a user holds. In Python: `from draftmill.producer import Client`, or AsyncClient in asyncio.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_client import AsyncBatch, AsyncClient
    from .batches import BatchStatus
    from .client import Batch, Client
    from .errors import UserError
    from .result import Result, Usage

__all__ = ["AsyncBatch", "AsyncClient", "Batch", "BatchStatus", "Client", "Result", "Usage", "UserError"]

_MODULES = {
    "AsyncBatch": "async_client",
    "AsyncClient": "async_client",
    "Batch": "client",
    "BatchStatus": "batches",
    "Client": "client",
    "Result": "result",
    "Usage": "result",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
