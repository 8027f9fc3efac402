"""Generation defaults of the loaded model's folder, for the jobs that leave parameters to them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from ..engine.request import RequestError
from ..producer.queue.wire import JobBody, ModelDefault, Sampling

FILE = "generation_config.json"


def read(folder: Path) -> dict[str, Any]:
    """What a model's folder says of sampling, by our names; nothing if it does not say it.

    With `do_sample` false it means the likeliest token, which is what happens without a temperature.

    Raises:
        ModelError: the file is there, and cannot be read.
    """
    from ..engine.models.folder import read_json  # loads mlx-lm, which applying defaults does not need

    file = folder / FILE
    config = read_json(file) if file.exists() else {}
    names = get_args(ModelDefault)
    if config.get("do_sample") is False:
        names = tuple(name for name in names if name != "temperature")
    return {name: config[name] for name in names if config.get(name) is not None}


def applied(body: JobBody, defaults: Mapping[str, Any]) -> JobBody:
    """The job with the model's `defaults` for the parameters that it leaves to them; raises RequestError."""
    left = {name: defaults[name] for name in body.model_defaults if name in defaults}
    if not left:
        return body
    try:
        sampling = Sampling.model_validate(body.sampling.model_dump() | left)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise RequestError(
            f"{FILE} of the model has {name} = {left[name]!r}, which is not usable; name {name}"
        ) from None
    return body.model_copy(update={"sampling": sampling})
