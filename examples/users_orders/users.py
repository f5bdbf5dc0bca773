"""The users service: owns people; knows nobody else."""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

from fastapi import Body, FastAPI, HTTPException, Response
from pydantic import BaseModel

from evsync import Aggregate, NotFound, Service, event


class User(Aggregate):
    """A person with an account."""

    @event("Registered")
    def __init__(self, name: str, email: str) -> None:
        self.name, self.email = name, email

    @event("Renamed")
    def rename(self, name: str) -> None:
        """Be called differently from now on."""
        self.name = name


users = Service("users", aggregates=[User])  # opens nothing yet; EVSYNC_USERS_STORE, EVSYNC_NATS
app = FastAPI(title="users", lifespan=users.lifespan)


class NewUser(BaseModel):
    """Who wants an account."""

    name: str
    email: str


@app.post("/users", status_code=201)
async def register(new: NewUser, response: Response) -> dict[str, str]:
    """Register one person."""
    user = User(name=new.name, email=new.email)
    response.headers["Position"] = str(await users.save(user))
    return {"id": str(user.id)}


@app.post("/users/bulk", status_code=201)
async def register_many(new: list[NewUser], response: Response) -> list[str]:
    """Register many: each an aggregate and a save of its own, all in flight at once. Answers their ids in order.

    The header has the last position in each log: in one, unless users has several shards.
    """
    people = [User(name=n.name, email=n.email) for n in new]
    positions = sorted(await asyncio.gather(*map(users.save, people)), key=lambda p: p.number)
    if positions:
        response.headers["Position"] = ", ".join(map(str, {p.log: p for p in positions}.values()))
    return [str(user.id) for user in people]


@app.put("/users/{id}/name", status_code=204)
async def rename(id: UUID, name: Annotated[str, Body()], response: Response) -> None:
    """Rename a person."""
    try:
        response.headers["Position"] = str(await users.execute(User, id, User.rename, name))
    except NotFound:
        raise HTTPException(404, f"no user {id}") from None
