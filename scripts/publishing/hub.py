"""What the Hub's failures mean: which of them may pass, how long it asks to wait, what stands in the way."""

from __future__ import annotations

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import parse_ratelimit_headers

NO_SOCKS = "the environment names a SOCKS proxy: pip install 'httpx2[socks]', or unset ALL_PROXY and HTTPS_PROXY"


def is_transient(response: httpx2.Response) -> bool:
    """Whether the same request may well succeed."""
    # 409, 412: a branch has changed. Addresses in the storage behind the Hub grow too old; others are given then.
    status, is_of_hub = response.status_code, str(response.url).startswith(constants.ENDPOINT)
    return status in (408, 409, 412, 425, 429) or status >= 500 or not is_of_hub


def asked_pause(response: httpx2.Response) -> int:
    """Seconds that the Hub asks to wait, in either of its headers."""
    limit, asked = parse_ratelimit_headers(response.headers), response.headers.get("Retry-After", "")
    if limit and not limit.remaining:
        return limit.reset_in_seconds + 1
    return int(asked) if asked.isdecimal() else 0
