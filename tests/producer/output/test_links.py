"""OUT and its error file as links: what they lead to is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from draftmill.producer.input.dataset import key_of
from draftmill.producer.output.files import check_writable
from draftmill.producer.output.output import Output, errors_of
from draftmill.producer.queue.errors import UserError
from tests.producer.output.test_output import FORMATS, done, failed, rows


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, format: str, there: bool) -> None:
    big, out = tmp_path / "big", tmp_path / f"out.{format}"
    big.mkdir()
    for link in (out, errors_of(out)):
        link.symlink_to(Path("big", link.name))
    if there:
        (big / out.name).touch()
    check_writable(out)
    for n in range(4):  # each time by a command of its own
        with Output(out, "b") as output:
            output.write(failed(n) if n == 2 else done(n))
    with Output(out, "b") as output:
        output.sort({key_of(f"r-{n}"): 9 - n for n in range(4)})
        output.finish()
    assert out.is_symlink()
    assert errors_of(out).is_symlink()
    assert {path.name for path in big.iterdir()} == {out.name, errors_of(out).name}
    assert [row["custom_id"] for row in rows(big / out.name)] == ["r-3", "r-1", "r-0"]
    with Output(out, "b") as output:  # the failure runs again
        output.write(done(2))
        output.finish()
    with Output(out, "c", force=True) as output:
        output.write(done(7))
        output.finish()
    assert out.is_symlink()
    assert errors_of(out).is_symlink()
    assert {path.name for path in big.iterdir()} == {out.name}
    assert [row["custom_id"] for row in rows(big / out.name)] == ["r-7"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "none" / "out.jsonl")
    with pytest.raises(UserError, match=r"there is no folder '.*none'"):
        check_writable(tmp_path / "out.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(UserError, match=r"cannot write '.*loop\.jsonl'"):
        Output(tmp_path / "loop.jsonl", "b")
