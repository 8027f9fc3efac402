"""Any row goes the whole way unharmed: file, template, queue, claim, result; through a real server."""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftmill.engine.request import Completion, Request
from draftmill.engine.text import Text
from draftmill.producer.client.patience import Patience
from draftmill.producer.client.submission import plan, submit
from draftmill.producer.input.dataset import Dataset
from draftmill.producer.input.lines import Defaults
from draftmill.producer.input.rows import RowOptions
from draftmill.producer.queue import batches
from draftmill.producer.queue.leases import JobQueue
from draftmill.worker import jobs, results
from tests.engine.small import NumberTokenizer

PAIR = "small"
LEAF = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    LEAF | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=7), inner, max_size=3),
)
NAMES = st.text(max_size=9).filter(lambda name: name not in ("id", "custom_id"))
TABLES = st.lists(NAMES, min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.lists(
        st.fixed_dictionaries({name: st.text(max_size=20) for name in names}), min_size=1, max_size=4
    )
)
SLOWLY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def there_and_back(redis: redis_py.Redis, name: str, content: bytes, rows: list[dict[str, Any]]) -> None:
    """Lets every row be its own prompt, and every prompt its own completion."""
    keep = tuple(rows[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        options = RowOptions(template="{{ row | tojson }}", keep=keep)
        dataset = Dataset(str(path), PAIR, Defaults(), options)
        survey = dataset.survey()
    assert (survey.good, survey.bad) == (len(rows), 0), survey.first_bad
    redis.flushdb()
    submission = plan(dataset, survey, "ann")
    submit(Patience(redis), submission)
    queue = JobQueue(redis, "w", PAIR, lease=30)
    for claimed in queue.claim(len(rows)):
        body = jobs.decode(claimed, PAIR)
        assert body.messages
        completion = Completion(claimed.id, body.messages[0].content or "", (1,), "stop", 1)
        asked = jobs.Asked((Request(claimed.id, (1,)),))
        outcome = results.completed(claimed, body, asked, [completion], Text(NumberTokenizer()))
        assert queue.commit([outcome]) == [True]
    found = sorted(batches.read(redis, submission.info.id, "0-0", 500), key=lambda result: result.n)
    lines = [orjson.loads(result.line) for result in found]
    assert [orjson.loads(line["response"]["body"]["choices"][0]["message"]["content"]) for line in lines] == rows
    assert [line.get("keep", {}) for line in lines] == rows


@given(rows=st.lists(st.dictionaries(NAMES, JSON, max_size=4), min_size=1, max_size=3))
@SLOWLY
def test_rows_of_json(redis: redis_py.Redis, rows: list[dict[str, Any]]) -> None:
    rows = [{**dict.fromkeys(name for row in rows for name in row), **row} for row in rows]
    there_and_back(redis, "x.jsonl", b"\n".join(orjson.dumps(row) for row in rows), rows)


@given(rows=TABLES)
@SLOWLY
def test_rows_of_csv(redis: redis_py.Redis, rows: list[dict[str, str]]) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    there_and_back(redis, "x.csv", out.getvalue().encode(), rows)


@given(rows=TABLES)
@SLOWLY
def test_rows_of_parquet(redis: redis_py.Redis, rows: list[dict[str, str]]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    there_and_back(redis, "x.parquet", sink.getvalue(), rows)
