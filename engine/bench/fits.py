"""What some published pairs take, in 4 bits with their drafts in bfloat16, before any worker has loaded them.

These are the numbers of `Needs.of` over the bench's shapes; once a worker has loaded a pair, its own are better.
"""

from __future__ import annotations

from ..shares import Needs

PUBLISHED = {
    "qwen3-4b": (
        Needs(
            page=10_748_416,
            row=0,
            prefix=0,
            drafts=True,
            rounds=(
                5_100_441_600,
                4_482_007_040,
                3_863_572_480,
                3_554_355_200,
                3_245_137_920,
                3_090_529_280,
                2_935_920_640,
                2_858_616_320,
                2_752_140_288,
                2_558_149_120,
            ),
            length=40_976,
        ),
        3_337_774_592,
    ),
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
    "qwen3.5-35b-a3b": (
        Needs(
            page=3_408_384,
            row=82_145_280,
            prefix=64_389_120,
            drafts=True,
            rounds=(
                6_755_287_040,
                5_876_367_360,
                4_997_447_680,
                4_557_987_840,
                4_118_528_000,
                3_898_798_080,
                3_679_068_160,
                3_569_203_200,
                3_459_338_240,
                3_277_957_120,
            ),
            length=262_160,
        ),
        20_515_500_160,
    ),
}
"""By the names of pairs: needs, and bytes of weights."""
