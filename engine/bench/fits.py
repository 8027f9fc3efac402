"""What some published pairs take, in 4 bits with their drafts in bfloat16, before any worker has loaded them.

These are the numbers of `Needs.of` over the bench's shapes; once a worker has loaded a pair, its own are better.
"""

from __future__ import annotations

from ..shares import Needs

PUBLISHED = {
    "qwen3.5-4b": (
        Needs(
            page=3_408_384,
            row=65_716_224,
            prefix=51_511_296,
            drafts=True,
            rounds=(
                5_441_683_456,
                4_726_964_224,
                4_012_244_992,
                3_654_885_376,
                3_297_525_760,
                3_118_845_952,
                2_940_166_144,
                2_850_826_240,
                2_761_486_336,
                2_600_630_272,
            ),
            length=262_160,
        ),
        3_441_973_248,
    ),
}
"""By the names of pairs: needs, and bytes of weights."""
