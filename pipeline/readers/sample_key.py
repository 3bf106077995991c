"""The key of a sample: a digest of its bytes, which names its row in manifests and in the feature store.

`store.key_arrays` holds many keys as an array.
"""

import hashlib

KEY_BYTES = 16
"""The length of a key."""


def content_key(data: bytes) -> str:
    """Return the key of a sample: BLAKE2b of its bytes, 16 bytes as 32 hex digits (RFC 7693)."""
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()
