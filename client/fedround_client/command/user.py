"""`fedround user`: users, their tokens and their certificates."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fedround.v1.user_pb2 import CreateUserResponse, Role, RotateTokenResponse, User
from fedround_client.command.output import Columns, Format, FormatOption, show, show_all, state_name, when
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="Manage users and their tokens.")


class RoleChoice(StrEnum):
    """Roles of users."""

    CLIENT = "CLIENT"
    ACTOR = "ACTOR"
    ADMIN = "ADMIN"


def _positive(hours: float | None) -> float | None:
    if hours is not None and not hours > 0:
        raise typer.BadParameter("must be more than 0 hours")
    return hours


UserId = Annotated[str, typer.Argument(metavar="USER_ID", help="UUID of the user.")]
OptionalUserId = Annotated[str, typer.Argument(metavar="[USER_ID]", help="UUID of the user; yourself by default.")]
Lifetime = Annotated[
    float | None,
    typer.Option(
        callback=_positive,
        help="Hours until the token expires, more than 0; the server's default otherwise.",
    ),
]
CERTIFICATE_HELP = "DNS name, URI or e-mail address in the subjectAltName of certificates that authenticate the user."

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
    lifetime: Lifetime = None,
    certificate_name: Annotated[list[str] | None, typer.Option(help=CERTIFICATE_HELP)] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Create a user, and print its token, which is not shown again."""
    with client_of(context) as client:
        user, token = client.create_user(
            name, role.value, lifetime=_seconds(lifetime), certificate_names=certificate_name or ()
        )
    show(CreateUserResponse(user=user, token=token), form)


@app.command("list")
def list_(
    context: typer.Context,
    role: Annotated[RoleChoice | None, typer.Option(case_sensitive=False, help="Only users with this role.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the users by name."""
    with client_of(context) as client:
        show_all(client.users(role.value if role is not None else None), _COLUMNS, form)


@app.command("show")
def show_(context: typer.Context, user_id: OptionalUserId = "", form: FormatOption = Format.TABLE) -> None:
    """Show a user and its valid tokens."""
    with client_of(context) as client:
        show(client.get_user(user_id) if user_id else client.myself(), form)


@app.command()
def remove(
    context: typer.Context,
    user_id: UserId,
    force: Annotated[bool, typer.Option("--force", help="Even if it is the actor of a running training.")] = False,
) -> None:
    """Remove a user, its tokens and its participation in trainings, and the trainings that it created."""
    with client_of(context) as client:
        client.remove_user(user_id, force=force)
    typer.echo(f"User {user_id} is removed.", err=True)


@app.command()
def rotate_token(
    context: typer.Context,
    user_id: OptionalUserId = "",
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=720, help="Hours that the old token stays valid, up to 30 days; by default none."),
    ] = None,
    lifetime: Lifetime = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Replace a user's token, and print the new one, which is not shown again."""
    with client_of(context) as client:
        token = client.rotate_token(user_id, overlap=_seconds(overlap), lifetime=_seconds(lifetime))
    show(RotateTokenResponse(token=token), form)


@app.command()
def revoke_token(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(help="Id of the token, as printed by `fedround user show`.")],
    user_id: OptionalUserId = "",
) -> None:
    """Revoke a token; ends the calls that were made with it."""
    with client_of(context) as client:
        client.revoke_token(token_id, user_id)
    typer.echo(f"Token {token_id} is revoked.", err=True)


@app.command()
def certificates(
    context: typer.Context,
    user_id: UserId,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help=CERTIFICATE_HELP)] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Set the names in client certificates that authenticate a user, in place of those set before; may be none."""
    with client_of(context) as client:
        show(client.set_certificate_names(user_id, names or ()), form)


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * 3600
