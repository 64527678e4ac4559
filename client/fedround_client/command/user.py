"""`fedround user`: who may talk to the server."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fedround.v1.user_pb2 import CreateUserResponse, Role, RotateTokenResponse, User
from fedround_client.command.output import Columns, Format, FormatOption, show, show_all, state_name, when
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="Manage users and their tokens.")


class RoleChoice(StrEnum):
    """The roles."""

    CLIENT = "CLIENT"
    ACTOR = "ACTOR"
    ADMIN = "ADMIN"


UserId = Annotated[str, typer.Argument(metavar="USER_ID", help="UUID of the user.")]
MaybeUserId = Annotated[str, typer.Argument(metavar="[USER_ID]", help="UUID of the user; yourself by default.")]

_COLUMNS: Columns[User] = {
    "USER_ID": lambda user: user.user_id,
    "NAME": lambda user: user.name,
    "ROLE": lambda user: state_name(Role.Name(user.role)),
    "CREATED": lambda user: when(user.create_time),
}


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Unique, at most 200 characters.")],
    role: Annotated[RoleChoice, typer.Option(case_sensitive=False, help="What the user may do.")] = RoleChoice.CLIENT,
    form: FormatOption = Format.TABLE,
) -> None:
    """Create a user, and print its token: the only time that it is shown."""
    with client_of(context) as client:
        user, token = client.create_user(name, role.value)
    show(CreateUserResponse(user=user, token=token), form)


@app.command("list")
def list_(
    context: typer.Context,
    role: Annotated[RoleChoice | None, typer.Option(case_sensitive=False, help="Only users of this role.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the users by name."""
    with client_of(context) as client:
        show_all(client.users(role.value if role is not None else None), _COLUMNS, form)


@app.command("show")
def show_(context: typer.Context, user_id: MaybeUserId = "", form: FormatOption = Format.TABLE) -> None:
    """Show a user."""
    with client_of(context) as client:
        show(client.get_user(user_id) if user_id else client.myself(), form)


@app.command()
def remove(
    context: typer.Context,
    user_id: UserId,
    force: Annotated[bool, typer.Option("--force", help="Even while trainings run that it steers.")] = False,
) -> None:
    """Remove a user: its tokens are revoked, it leaves its trainings, and those that it steers are removed."""
    with client_of(context) as client:
        client.remove_user(user_id, force=force)
    typer.echo(f"User {user_id} is removed.", err=True)


@app.command()
def rotate_token(context: typer.Context, user_id: MaybeUserId = "", form: FormatOption = Format.TABLE) -> None:
    """Replace a user's token, and print the new one: the only time that it is shown."""
    with client_of(context) as client:
        show(RotateTokenResponse(token=client.rotate_token(user_id)), form)
