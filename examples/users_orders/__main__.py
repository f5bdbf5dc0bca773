"""`python -m examples.users_orders demo`: the whole example. `users` and `orders` are its services."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from rich.console import Console

from examples.users_orders import demo as demonstration

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, rich_markup_mode=None)

Fd = Annotated[int | None, typer.Option(help="A listening socket inherited from the parent process.")]
Port = Annotated[int, typer.Option(help="Port on 127.0.0.1.")]


@app.command()
def demo(
    data: Annotated[Path, typer.Option(help="A CDNOW purchase file.")] = demonstration.SAMPLE,
    directory: Annotated[Path, typer.Option("--dir", help="Where everything is stored.")] = Path("demo-data"),
    shards: Annotated[int, typer.Option(min=1, max=8, help="Over how many stores users are spread.")] = 1,
    grow: Annotated[
        bool, typer.Option("--grow", help="Begin with one of them; the others join while customers register.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Start nats-server and both services, register every customer, place every order, show the read model."""
    console = Console(stderr=as_json)
    try:
        result, malformed = demonstration.run(data, directory, console, shards, grow=grow)
    except demonstration.DemoFailed as e:
        Console(stderr=True).print(f"The demo cannot go on: {e}", style="red", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    demonstration.report(result, directory / "orders_view.db", console)
    if malformed:
        console.print(f"{malformed:,} lines of {data} could not be read; they are named above.", style="yellow")
    if as_json:
        print(json.dumps(asdict(result)))
    raise typer.Exit(1 if malformed else 0)


@app.command()
def users(port: Port = 8001, fd: Fd = None) -> None:
    """Serve the users service (EVSYNC_USERS_STORE and EVSYNC_NATS say where it stores and publishes)."""
    _serve("examples.users_orders.users:app", port, fd)


@app.command()
def orders(port: Port = 8002, fd: Fd = None) -> None:
    """Serve the orders service (EVSYNC_ORDERS_STORE, EVSYNC_ORDERS_VIEWS, EVSYNC_NATS)."""
    _serve("examples.users_orders.orders:app", port, fd)


def _serve(target: str, port: int, fd: int | None) -> None:
    uvicorn.run(target, host="127.0.0.1", port=port, fd=fd, log_level="warning")


if __name__ == "__main__":
    app()
