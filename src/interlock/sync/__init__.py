"""Weight versions as lossless deltas under any fsspec URL.

`identity` says what a tensor is, `codec` turns tensors into bytes, `storage` keeps bytes under a
URL, `store` ties them to versions, and a `replica` follows one.
"""

from interlock.sync.identity import digest, tensor_digest
from interlock.sync.replica import Replica
from interlock.sync.store import PublishedVersion, Publisher

__all__ = ["PublishedVersion", "Publisher", "Replica", "digest", "tensor_digest"]
