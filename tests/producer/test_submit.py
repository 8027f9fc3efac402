"""The order in which lines are queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import redis as redis_py

from draftmill.producer import contract
from draftmill.producer.batches import BatchInfo
from draftmill.producer.dataset import Dataset
from draftmill.producer.lines import Defaults
from draftmill.producer.submit import BEGINNING, submit


def test_lines_of_one_template_follow_each_other(redis: redis_py.Redis, tmp_path: Path) -> None:
    templates = [f"{name}: " + "please " * (BEGINNING // 6) for name in ("sum up", "translate")]
    lines = [{"id": f"{n}", "prompt": templates[n % 2] + f"text {9 - n}"} for n in range(6)]
    lines.insert(3, {"id": "alone", "prompt": "hello"})
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    dataset = Dataset(str(path), "some-pair", Defaults())
    batch = BatchInfo(dataset.survey().batch, "some-pair", "normal", 7)
    assert submit(redis, dataset, batch, lambda state: None).new == 7
    queued: Any = redis.lrange(f"rq:queue:{contract.queue_name('some-pair', 'normal', batch.id)}", 0, -1)
    names = {contract.job_id(batch.id, line["id"]): line["id"] for line in lines}
    assert [names[job.decode()] for job in queued] == ["0", "2", "4", "1", "3", "5", "alone"]
