"""POST /v1/embeddings: one vector a text."""

from __future__ import annotations

import asyncio
import base64

import numpy as np

from ..embed import read
from .answers import Answer
from .errors import HttpError
from .schemas import Embedding, texts_or_ids
from .service import Service


async def embeddings(service: Service, body: Embedding) -> Answer:
    """The answer to one request. Raises HttpError."""
    service.model(body.model)
    vectors, engine = service.vectors, service.engine
    given = texts_or_ids(body.input, "input", service.limits.inputs)
    texts = [x for x in given if isinstance(x, str)]
    if texts and len(texts) < len(given):
        raise HttpError(400, "input mixes texts and token ids", param="input")
    before = 0
    if texts:
        if "" in texts:
            raise HttpError(400, f"input.{texts.index('')} is an empty text", param="input")
        rows, before = await service.thread(read, service.tokenizer, texts, engine.pooling, positions=service.positions)
    else:
        rows = [await service.encode(x, f"input.{i}") for i, x in enumerate(given)]
        for i, row in enumerate(rows):
            if service.positions is not None and len(row) > service.positions:
                what = f"input.{i} has {len(row)} tokens, but the model has {service.positions} positions"
                raise HttpError(400, what, param="input", code="context_length_exceeded")
    try:
        found = await asyncio.wait_for(
            asyncio.wrap_future(vectors.submit(rows, before)), timeout=service.limits.timeout
        )
    except TimeoutError:
        raise HttpError(504, f"the embeddings were not there within {service.limits.timeout:g} s") from None
    count = sum(len(row) for row in rows)
    data = [{"object": "embedding", "index": i, "embedding": _shown(x, body)} for i, x in enumerate(found)]
    return {
        "object": "list",
        "data": data,
        "model": body.model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _shown(vector: object, body: Embedding) -> list[float] | str:
    wide = np.asarray(vector, "<f4")
    return base64.b64encode(wide.tobytes()).decode() if body.encoding_format == "base64" else wide.tolist()
