"""What `--help` prints."""

import typer
from typer.testing import CliRunner

from fedround_client.command import app


def test_help_and_version():
    for line in (["--help"], ["training", "create", "--help"], ["--version"]):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0
        assert result.stdout


def test_help_has_no_line_breaks_of_the_source():
    group = typer.main.get_command(app)
    commands = [*group.commands.values(), *group.commands["training"].commands.values()]
    assert not [one.name for one in commands if "\n" in (one.help or "").replace("\n\n", "")]
    assert "\n\n" in group.commands["training"].commands["round"].help


def test_usage_has_arguments_in_upper_case():
    shown = CliRunner().invoke(app, ["training", "round", "--help"]).stdout
    assert "[ROUND]" in shown
    assert "[[" not in shown
    assert "INPUTS" in CliRunner().invoke(app, ["predict", "--help"]).stdout
