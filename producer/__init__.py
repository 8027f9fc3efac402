"""What a user holds. In Python: `from draftmill.producer import Client`, or AsyncClient in asyncio.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client.async_client import AsyncBatch, AsyncClient
    from .client.client import Batch, Client
    from .queue.batches import BatchStatus
    from .queue.errors import UserError
    from .queue.result import Result, Usage

__all__ = ["AsyncBatch", "AsyncClient", "Batch", "BatchStatus", "Client", "Result", "Usage", "UserError"]

_MODULES = {
    "AsyncBatch": "client.async_client",
    "AsyncClient": "client.async_client",
    "Batch": "client.client",
    "BatchStatus": "queue.batches",
    "Client": "client.client",
    "Result": "queue.result",
    "Usage": "queue.result",
    "UserError": "queue.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
