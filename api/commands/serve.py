"""`monograph serve`: a built folder behind HTTP, in the shape of OpenAI's API."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..console import Json, command, err, print_json
from ..ir import MonographError
from ..ir.missing import needed


@command
def serve(
    folder: Annotated[Path, typer.Argument(help="a folder made by `build`")],
    host: Annotated[str, typer.Option(help="address to listen on; the default is reached from this machine only")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0: any free one")] = 8000,
    name: Annotated[str | None, typer.Option(help="of the model to clients; by default that of the folder")] = None,
    token_file: Annotated[Path | None, typer.Option(help="bearer tokens, one a line")] = None,
    token_env: Annotated[str | None, typer.Option(help="environment variable with a bearer token")] = None,
    public: Annotated[bool, typer.Option("--public", help="listen beyond this machine without a token")] = False,
    rows: Annotated[int, typer.Option(help="most requests computed at once")] = 8,
    queue: Annotated[int, typer.Option(help="most requests that wait; more are refused with 429")] = 256,
    chunk: Annotated[int, typer.Option(help="most tokens of a prompt read between two steps of others")] = 256,
    prefix_cache: Annotated[int, typer.Option(help="MB for the states of shared beginnings of prompts")] = 256,
    max_tokens: Annotated[int, typer.Option(help="most new tokens of an answer")] = 4096,
    max_body: Annotated[int, typer.Option(help="most bytes of a request")] = 1 << 20,
    connections: Annotated[int, typer.Option(help="most connections at once")] = 512,
    timeout: Annotated[float, typer.Option(help="most seconds of a request")] = 600.0,
    drain: Annotated[float, typer.Option(help="seconds that running requests get after SIGTERM")] = 30.0,
    threads: Annotated[int | None, typer.Option(help="by default one a physical core")] = None,
    json_output: Json = False,
) -> None:
    """Serve a built folder over HTTP, in the shape of OpenAI's API, until it is told to end.

    SIGTERM or Ctrl-C: no new requests, those that run end, then the server ends. A second one ends it at once.
    """
    with needed("`serve`"):
        from ..inference.server.limits import Limits
        from ..inference.server.run import serve as serve_

    limits = Limits(
        body=max_body,
        tokens=max_tokens,
        timeout=timeout,
        connections=connections,
        requests=rows + queue + 64,
        drain=drain,
    )

    def ready(url: str) -> None:
        if json_output:
            print_json({"url": url, "pid": os.getpid()})
        else:
            err().print(f"serving {name or folder.resolve().name} at {url}/v1  (Ctrl-C ends it)", markup=False)

    serve_(
        folder,
        host=host,
        port=port,
        tokens=tokens_of(token_file, token_env),
        public=public,
        name=name,
        threads=threads,
        limits=limits,
        ready=ready,
        rows=rows,
        queue=queue,
        chunk=chunk,
        prefix_bytes=prefix_cache << 20,
    )


def tokens_of(file: Path | None, variable: str | None) -> list[str]:
    """The tokens in a file and in an environment variable. Raises MonographError if either has none."""
    found: list[str] = []
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise MonographError(f"cannot be read: {e}", place=str(file)) from None
        found += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise MonographError("holds no token", place=str(file), hint="one a line")
    if variable is not None:
        if not os.environ.get(variable):
            raise MonographError(f"the environment variable {variable} is not set, or is empty")
        found.append(os.environ[variable])
    return found
