"""Commands about batches: submit, collect, cancel, forget."""

from __future__ import annotations

from typing import Any

import click
import redis as redis_py

from ..client import shares
from ..client.collect import Collector
from ..client.follower import Follower, current, known
from ..client.hook import Hook
from ..client.patience import Patience
from ..client.submission import Feed, Submission, plan, refuse_cancelled, submit
from ..input import parameters
from ..input.notes import of_answers
from ..output import places
from ..output.manifest import difference
from ..output.output import Output
from ..output.summary import count, where
from ..queue import batches
from ..queue.batches import BatchInfo, BatchStatus, Submitted
from ..queue.connect import connect, user_of
from ..queue.errors import AGAIN, FAILED_ITEMS, Interrupted, UserError
from ..queue.rest import duty
from ..queue.wire import LEAST_KEPT, MOST_KEPT, PRIORITIES
from . import options
from .dry_run import preview
from .progress import BatchProgress, Moving
from .report import output_report, print_json, tell


@click.command("submit")
@options.dataset
@click.option(
    "--priority", type=click.Choice(PRIORITIES), default="normal", show_default=True, help="Among all batches."
)
@click.option(
    "--keep-results",
    type=options.Duration(LEAST_KEPT, MOST_KEPT),
    show_default="14d",
    metavar="TIME",
    help="How long results that nobody collects stay in Redis once the batch is complete.",
)
@click.option("--detach", is_flag=True, help="Leave the lines that find no room now to a feeder of the fleet.")
@options.retry_failed
@options.dry_run
@options.as_json
@options.redis_url
@click.pass_context
def submit_command(
    context: click.Context,
    input: str,
    priority: str,
    keep_results: float | None,
    detach: bool,
    retry_failed: bool,
    reason: str,
    dry_run: bool,
    as_json: bool,
    redis_url: str | None,
    **given: Any,
) -> None:
    """Queue the prompts of INPUT; print the batch id.

    INPUT is JSON lines, CSV, Parquet, a dataset that Hugging Face's `datasets` saved, a folder of text files, the URL
    of a file, or - for standard input; see `draftmill run --help`. The same lines with the same parameters are the same
    batch: submitting them again queues only what has no result yet. Another parameter makes another batch. Bad lines
    are left out and listed on standard error.

    A line whose model is one of `draftmill pairs`, or is named by --models, runs on that pair, the others on that of
    --pair. All are one batch: each pair needs a worker, and results come together.

    Of a large INPUT 20,000 lines are queued at a time, and the command stays until all are. With --detach it hands the
    rest to a feeder (`draftmill feed`; `draftmill cron run` and `draftmill serve` feed too) and ends.

    --retry-failed queues the lines that failed as well, also after they were collected. Each keeps exactly one result:
    `draftmill collect` takes their failures out of the error file of OUT.

    \b
    Examples:
      batch=$(draftmill submit prompts.jsonl --redis-url redis://queue.local)
      draftmill collect $batch -o results.jsonl --follow
      draftmill submit s3://bucket/prompts.jsonl.gz
      draftmill submit articles.parquet --template 'Summarise: {{ text }}' --where 'lang == "en"' --sample 100
      draftmill submit mixed.jsonl --models gpt-4o=qwen3-8b,/models/mine    # others run on the pair of --pair
      draftmill submit million.jsonl --detach
      draftmill submit prompts.jsonl --retry-failed
      draftmill submit prompts.jsonl --retry-failed --reason lost_leases
      draftmill submit prompts.jsonl --json | jq -r .batch
    """
    submission = planned(user_of(redis_url), input, priority, keep_results, **given)
    survey = submission.survey
    options.say_notes(survey.notes.lines())
    if dry_run:
        preview(submission, redis_url)
        return
    redis, batch = connect(redis_url), submission.info
    before = batches.status(redis, batch.id)
    refuse_cancelled(before)
    for line in survey.bad_lines:
        click.echo(f"Bad {line}", err=True)
    if before is None and not given.get("slot"):
        _say_what_changed(redis, batch)
    if before and before.is_paused:
        click.echo(f"Note: it is paused; draftmill resume {batch.id} lets it go on", err=True)
    if before and before.complete and keep_results is not None and not retry_failed:
        click.echo("Note: it is complete already; --keep-results changes nothing", err=True)
    sent, left = Submitted(done=survey.good), 0
    if before and before.collected and not retry_failed:
        click.echo(f"Note: it was collected already; draftmill forget {batch.id} lets it run anew", err=True)
    else:
        options.say_notes(shares.notes(redis, submission))
        try:
            sent, left = _submit(submission, Patience(redis, say), detach, retry_failed, reason)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command queues the rest") from None
    if retry_failed:
        click.echo(f"Note: {count(sent.retried, 'failed line')} queued again", err=True)
    if left:
        click.echo(f"Note: {count(left, 'line')} left to a feeder, which queues them as others finish", err=True)
        options.say_notes(filter(None, [duty.unfed(redis, batch.id)]))
    if as_json:
        counts = {"lines": survey.good, "bad": survey.bad, "new": sent.new, "retried": sent.retried}
        before_now = {"queued_before": sent.queued, "ended_before": sent.done, "left": left}
        print_json({"batch": batch.id} | counts | before_now | {"notes": list(survey.notes.lines())})
    else:
        click.echo(batch.id)
    if survey.bad:
        context.exit(FAILED_ITEMS)


def _submit(
    submission: Submission, patience: Patience, detach: bool, retry_failed: bool, reason: str
) -> tuple[Submitted, int]:
    """Queues all lines, or those that there is room for; returns what became of them, and how many are left."""
    if not detach:
        return submit(patience, submission, full=Notice(), retry_failed=retry_failed, reason=reason), 0
    feed = Feed(submission, patience, retry_failed=retry_failed, reason=reason)
    patience(feed.begin)
    return feed.detach(), feed.left


def planned(user: str, input: str, priority: str, keep_results: float | None, **given: Any) -> Submission:
    """What `user` would submit with these options; those that are `given` are those of `options.dataset`."""
    dataset, survey = options.read(input, **given)
    return plan(dataset, survey, user, priority, parameters.of(given), keep_results)


def _say_what_changed(redis: redis_py.Redis, batch: BatchInfo) -> None:
    """A new batch of a file that was submitted before: says why it is another one."""
    for state in batches.list_batches(redis):
        if (state.source, state.user) == (batch.source, batch.user):
            why = difference(state, batch.source, batch.parameters)
            click.echo(f"Note: a new batch, not {state.id}: {why}", err=True)
            return


def say(text: str) -> None:
    """Something that the user should know meanwhile."""
    click.echo(text, err=True)


class Notice:
    """Says once that submitting waits for workers."""

    said = False

    def __call__(self, state: BatchStatus) -> None:
        if not self.said:
            self.said = True
            say(
                f"{state.open:,} lines are queued; the others follow as these finish (--detach leaves them to a feeder)"
            )


@click.command("collect")
@options.batch()
@options.out
@click.option("--follow", is_flag=True, help="Wait until the batch is complete.")
@click.option("--sorted", "in_order", is_flag=True, help="Put results in input order when the batch is complete.")
@click.option("--leave", is_flag=True, help="Leave the results in Redis for others once OUT has them all.")
@click.option("--force", is_flag=True, help="Overwrite OUT if it holds something else.")
@options.notify
@options.as_json
@options.redis_url
@click.pass_context
def collect_command(
    context: click.Context,
    batch: str,
    out: str,
    follow: bool,
    in_order: bool,
    leave: bool,
    force: bool,
    hook: Hook | None,
    as_json: bool,
    redis_url: str | None,
) -> None:
    """Write the results that BATCH has so far to OUT.

    OUT is JSON lines, or a table if its name ends in .csv or .parquet; a Parquet file is written when the batch is
    complete, and until then its rows are in OUT.partial.jsonl. OUT may be a URL (s3://, gs://, hf://datasets/…), to
    which all is sent when the command ends. Run it again for the rest: OUT never gets a line twice,
    however often it was cut. Failed and bad lines go to OUT.errors.jsonl. Redis drops the results that OUT has, unless
    you --leave them for others.

    \b
    Examples:
      draftmill collect batch_0123456789abcdef01234567 -o results.jsonl --follow
      draftmill collect batch_0123456789abcdef01234567 -o results.parquet --follow --sorted
      draftmill collect batch_0123456789abcdef01234567 -o s3://bucket/results.jsonl --follow
      draftmill collect batch_0123456789abcdef01234567 -o results.csv --json | jq .complete
      draftmill collect batch_0123456789abcdef01234567 -o results.jsonl --follow --notify https://example.com/done
    """
    places.check(out)
    redis = connect(redis_url)
    state = known(redis, batch)
    if force and batches.handed(redis, batch):
        force = False
        note = (
            "--force does nothing: results of the batch are in an OUT and no longer in Redis, and nothing may lose them"
        )
        options.say_notes([note])
    with (
        places.place_of(out, force, Moving()) as place,
        Output(place, batch, force, state.source, state.parameters) as output,
    ):
        try:
            with output.sent_if_cut():
                state = _collect(redis, output, state, follow, leave)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command goes on, the batch runs on") from None
        finally:
            options.say_notes(of_answers(output.notes))
        if state.complete:
            if in_order:
                output.sort()
            output.finish()
        output.send()
        missing = max(0, state.total - state.ended)
        if as_json:
            notes = list(of_answers(output.notes))
            print_json(output_report(output, state.complete) | {"missing": missing, "notes": notes})
        else:
            click.echo(where(output))
        if missing:
            click.echo(
                f"{missing:,} of {count(state.total, 'line')} have no result yet; "
                "run the same command again, or add --follow",
                err=True,
            )
        if state.complete:
            tell(hook, output, "cancelled" if state.is_cancelled else "completed")
        if output.failed or output.bad:
            context.exit(FAILED_ITEMS)


def _collect(redis: redis_py.Redis, output: Output, state: BatchStatus, follow: bool, leave: bool) -> BatchStatus:
    """Writes what there is, or all that comes; returns the state of the batch."""
    with BatchProgress(redis, *state.pairs) as progress:
        follower = Follower(Patience(redis, progress.note), state.id)
        with Collector(follower, output, leave) as collector:
            if batches.handed(redis, state.id) > output.ended:
                collector.refuse(state)
            if follow:
                if unfed := duty.unfed(redis, state.id):
                    progress.note(unfed)
                for state in collector:
                    progress(state)
            else:
                state = collector.step()
            if state.complete and output.ended < state.ended:
                collector.refuse(state)
            collector.take_bad_lines()
            return state


@click.command("cancel")
@options.batch()
@options.redis_url
def cancel_command(batch: str, redis_url: str | None) -> None:
    """Cancel what BATCH has not finished. What is finished can still be collected.

    \b
    Example:
      draftmill cancel batch_0123456789abcdef01234567
    """
    redis = connect(redis_url)
    state = known(redis, batch)
    if state.complete:
        click.echo(f"{batch} is complete already")
        return
    ended = batches.cancel(redis, batch)
    if ended is None:
        click.echo("Cancelled; workers end its lines within seconds")
    else:
        click.echo(f"Cancelled {count(ended, 'queued line')}; running ones end within seconds")
    if dropped := state.total - current(redis, batch).total:
        click.echo(f"{count(dropped, 'line')} that nobody had queued yet went with them, and will have no result")


@click.command("forget")
@options.batch()
@options.redis_url
def forget_command(batch: str, redis_url: str | None) -> None:
    """Drop all that Redis holds of BATCH, which must be complete or cancelled. Submitted again, it runs anew.

    \b
    Example:
      draftmill forget batch_0123456789abcdef01234567
    """
    redis = connect(redis_url)
    state = current(redis, batch)
    if not state.complete:
        if state.is_cancelled:
            raise UserError(f"{batch} is cancelled, but lines of it still run; they end soon, so {AGAIN}")
        raise UserError(f"{batch} is not complete; `draftmill cancel {batch}` ends what is open")
    if not batches.forget(redis, batch):
        raise UserError(f"failed lines of {batch} were queued again just now; nothing was dropped")
    click.echo(f"Forgot {batch}")
