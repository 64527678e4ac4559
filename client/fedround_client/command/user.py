"""`fedround user`: users, their tokens and their certificates."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from fedround.v1.user_pb2 import CreateUserResponse, Role, RotateTokenResponse, Token, User
from fedround_client.command import names
from fedround_client.command.labels import parse_labels
from fedround_client.command.output import (
    Columns,
    Format,
    FormatOption,
    echo,
    echo_json,
    enum_name,
    show,
    show_all,
    show_fields,
    show_removed,
    used,
    when,
)
from fedround_client.command.session import client_of

app = typer.Typer(no_args_is_help=True, help="Manage users and their tokens.")


class RoleChoice(StrEnum):
    """Roles of users."""

    CLIENT = "CLIENT"
    ACTOR = "ACTOR"
    ADMIN = "ADMIN"
    VIEWER = "VIEWER"


def _positive(hours: float | None) -> float | None:
    if hours is not None and not hours > 0:
        raise typer.BadParameter("must be more than 0 hours")
    return hours


Lifetime = Annotated[
    float | None,
    typer.Option(
        callback=_positive,
        help="Hours until the token expires, more than 0; the server's default otherwise.",
    ),
]
CERTIFICATE_HELP = "DNS name, URI or e-mail address in the subjectAltName of certificates that authenticate the user."

LABEL_HELP = "Label by which the cohorts of trainings select participants; repeat for more."

_COLUMNS: Columns[User] = {
    "USER_ID": lambda user: user.user_id,
    "NAME": lambda user: user.name,
    "ROLE": lambda user: enum_name(Role, user.role),
    "CREATED": lambda user: when(user.create_time),
}
_LABELS: Columns[User] = {"LABELS": lambda user: _labels(user)}

_TOKEN_COLUMNS: Columns[Token] = {
    "TOKEN_ID": lambda token: token.token_id,
    "CREATED": lambda token: when(token.create_time),
    "EXPIRES": lambda token: when(token.expire_time),
    "LAST USED": lambda token: when(token.last_use_time),
}


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Unique, at most 200 characters.")],
    role: Annotated[RoleChoice, typer.Option(case_sensitive=False, help="What the user may do.")] = RoleChoice.CLIENT,
    lifetime: Lifetime = None,
    certificate_name: Annotated[list[str] | None, typer.Option(help=CERTIFICATE_HELP)] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=LABEL_HELP)] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Create a user, and print its token, which is not shown again."""
    with client_of(context) as client:
        user, token = client.create_user(
            name,
            role.value,
            lifetime=_seconds(lifetime),
            certificate_names=certificate_name or (),
            labels=parse_labels(label or ()),
        )
    if form is Format.JSON:
        show(CreateUserResponse(user=user, token=token), form)
        return
    show_fields((*_fields(user), ("token", token)))


@app.command("list")
def list_(
    context: typer.Context,
    role: Annotated[RoleChoice | None, typer.Option(case_sensitive=False, help="Only users with this role.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """List the users by name."""
    with client_of(context) as client:
        users = list(client.users(role.value if role is not None else None))
    show_all(users, {**_COLUMNS, **used(_LABELS, users)}, form)


@app.command("show")
def show_(context: typer.Context, user: names.OptionalUser = "", form: FormatOption = Format.TABLE) -> None:
    """Show a user and its valid tokens."""
    with client_of(context) as client:
        found = client.get_user(names.user_id(client, user)) if user else client.myself()
    _show(found, form)


@app.command()
def remove(
    context: typer.Context,
    user: names.User,
    force: Annotated[
        bool, typer.Option("--force", help="Even if it is the actor of running trainings, which are removed, too.")
    ] = False,
    remove_models: Annotated[
        bool,
        typer.Option(
            "--remove-models",
            help="Remove its models and ended trainings, too, also if the user was removed before: give its id then.",
        ),
    ] = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Remove a user, its tokens, its participation in trainings, and those of its trainings that have not ended.

    Its models and its ended trainings stay for their participants, unless --remove-models is given.
    """
    with client_of(context) as client:
        user_id = names.user_id(client, user)
        client.remove_user(user_id, force=force, remove_models=remove_models)
    show_removed("user", user_id, form)


@app.command()
def rotate_token(
    context: typer.Context,
    user: names.OptionalUser = "",
    overlap: Annotated[
        float | None,
        typer.Option(min=0, max=720, help="Hours that the old token stays valid, up to 30 days; by default none."),
    ] = None,
    lifetime: Lifetime = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Replace a user's token, and print the new one, which is not shown again."""
    with client_of(context) as client:
        user_id = names.user_id(client, user) if user else ""
        token = client.rotate_token(user_id, overlap=_seconds(overlap), lifetime=_seconds(lifetime))
    show(RotateTokenResponse(token=token), form)


@app.command()
def revoke_token(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(help="Id of the token, as printed by `fedround user show`.")],
    user: names.OptionalUser = "",
    form: FormatOption = Format.TABLE,
) -> None:
    """Revoke a token; ends the calls that were made with it."""
    with client_of(context) as client:
        client.revoke_token(token_id, names.user_id(client, user) if user else "")
    if form is Format.JSON:
        echo_json({"revoked_token_id": token_id})
    else:
        echo(f"Token {token_id} is revoked.", err=True)


@app.command()
def certificates(
    context: typer.Context,
    user: names.User,
    certificate_names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help=CERTIFICATE_HELP)] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Set the names in client certificates that authenticate a user, in place of those set before; may be none."""
    with client_of(context) as client:
        _show(client.set_certificate_names(names.user_id(client, user), certificate_names or ()), form)


@app.command()
def label(
    context: typer.Context,
    user: names.User,
    labels: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Labels to add.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Label to remove; repeat for more.")] = None,
    form: FormatOption = Format.TABLE,
) -> None:
    """Add and remove labels of a user, by which the cohorts of trainings select participants."""
    added = parse_labels(labels or ())
    with client_of(context) as client:
        user_id = names.user_id(client, user)
        present = dict(client.get_user(user_id).labels)
        removed = {name.partition("=")[0] for name in remove or ()}
        if unknown := sorted(removed - present.keys()):
            raise typer.BadParameter(f"the user has no label {unknown[0]!r}: {', '.join(sorted(present)) or 'none'}")
        kept = {name: value for name, value in present.items() if name not in removed}
        _show(client.update_user(user_id, labels={**kept, **added}), form)


def _show(user: User, form: Format) -> None:
    if form is Format.JSON:
        show(user, form)
        return
    show_fields(_fields(user))
    if user.tokens:
        echo("")
        show_all(user.tokens, _TOKEN_COLUMNS, form)


def _fields(user: User) -> Iterator[tuple[str, object]]:
    yield "user", user.name
    yield "id", user.user_id
    yield "role", enum_name(Role, user.role)
    yield "created", when(user.create_time)
    yield "certificate names", ", ".join(user.certificate_names)
    yield "labels", _labels(user)


def _labels(user: User) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(user.labels.items()))


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * 3600
